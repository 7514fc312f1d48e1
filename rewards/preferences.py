"""Preference vectors: samplers, grids, quantisation, and how weights are written into a prompt.

A preference is a point of the simplex: K weights, each >= 0, sum 1, in the recipe's objective order.
Shapes: N vectors, K objectives. Importing this module needs numpy and pydantic only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self

import numpy as np

from rewards.config import REPEATED, ConditioningConfig, PreferencesConfig
from rewards.environment import one_line
from rewards.prompts import Prompt, as_prompt
from rewards.tokens import SpecialTokens

SUM_TOLERANCE = 1e-6
MAX_REDRAWS = 100
GRID_LIMIT = 64
"""Most vectors in the evaluation grid of four or more objectives (unless the corners alone are more)."""
GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")
"""Tags of transformers' own around what a model answers; no other reader of chat templates knows them."""

_GRID_3 = (  # tenths; the list used by the paper's baselines, with an exact centre (None)
    (0, 0, 10),
    (0, 10, 0),
    (1, 1, 8),
    (1, 8, 1),
    (2, 2, 6),
    (2, 4, 4),
    (2, 6, 2),
    None,
    (4, 4, 2),
    (4, 2, 4),
    (6, 2, 2),
    (8, 1, 1),
    (10, 0, 0),
)


class PreferenceError(ValueError):
    """A preference that is not on the simplex, or names other objectives than the recipe's."""


def quantize(weights: Any, decimals: int) -> np.ndarray:
    """Round weights [..., K] to ``decimals`` digits by largest remainder, so that each row still sums to 1.

    The sum is exact in integer units of ``10**-decimals``; equal remainders favour the lower index. Quantised rows are
    returned unchanged. Raises PreferenceError for rows off the simplex.
    """
    unit = 10**decimals
    return _units(_on_simplex(weights), unit) / unit


def sample_preference_pairs(
    rng: np.random.Generator,
    n: int,
    k: int,
    *,
    alpha: float,
    decimals: int,
    negatives: int = 1,
    min_distance: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw n times a w+ and M = ``negatives`` w- from Dirichlet(alpha, ..., alpha), independent and quantised.

    Returns float64 arrays [N, K] and [N, M, K].

    With ``min_distance`` > 0, a w- nearer to its w+ in L1 is drawn again, ``MAX_REDRAWS`` times at most; what is near
    even then becomes the corner farthest from w+. Without it, row i depends only on the generator's state and i.
    """
    draws = quantize(rng.dirichlet(np.full(k, float(alpha)), size=(n, 1 + negatives)), decimals)
    positive_NK, negative_NMK = draws[:, 0], draws[:, 1:]
    _move_away(rng, positive_NK, negative_NMK, alpha=alpha, decimals=decimals, min_distance=min_distance)
    return positive_NK, negative_NMK


def sample_negatives(
    rng: np.random.Generator, positive_NK: np.ndarray, *, alpha: float, decimals: int, min_distance: float
) -> np.ndarray:
    """One w- [N, K] for each given w+ [N, K], as `sample_preference_pairs` draws it, ``min_distance`` included."""
    n, k = positive_NK.shape
    negative_NMK = quantize(rng.dirichlet(np.full(k, float(alpha)), size=(n, 1)), decimals)
    _move_away(rng, positive_NK, negative_NMK, alpha=alpha, decimals=decimals, min_distance=min_distance)
    return negative_NMK[:, 0]


def _move_away(
    rng: np.random.Generator,
    positive_NK: np.ndarray,
    negative_NMK: np.ndarray,
    *,
    alpha: float,
    decimals: int,
    min_distance: float,
) -> None:
    """Draw again, in place, what of `negative_NMK` is too near."""
    k = positive_NK.shape[-1]
    for attempt in range(MAX_REDRAWS + 1):
        near_NM = np.abs(positive_NK[:, None] - negative_NMK).sum(axis=-1) < min_distance - 1e-9
        if not near_NM.any():
            return
        if attempt == MAX_REDRAWS:
            farthest_NK = np.eye(k)[positive_NK.argmin(axis=1)]
            negative_NMK[near_NM] = np.broadcast_to(farthest_NK[:, None], negative_NMK.shape)[near_NM]
            return
        negative_NMK[near_NM] = quantize(rng.dirichlet(np.full(k, float(alpha)), size=int(near_NM.sum())), decimals)


class WeightSampler(Protocol):
    """Where the vectors of a step's prompts come from."""

    @property
    def writes(self) -> Literal["weights", "levels"]:
        """What its numbers are, and so how they are printed."""
        ...

    def draw(self, rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """w+ [N, K] and w- [N, M, K] of n prompts, as they are printed."""
        ...


class DirichletSampler:
    """The recipe's `preferences`: w+ and w- from one Dirichlet, or a fixed w+."""

    writes: Literal["weights", "levels"] = "weights"

    def __init__(self, config: PreferencesConfig) -> None:
        self.config = config

    def draw(self, rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        positive_NK, negative_NMK = sample_preference_pairs(
            rng,
            n,
            k,
            alpha=config.alpha,
            decimals=config.decimals,
            negatives=config.negatives,
            min_distance=config.min_distance,
        )
        if config.fixed is not None:
            positive_NK = np.tile(quantize(config.fixed, config.decimals), (n, 1))
        return positive_NK, negative_NMK


def simplex_grid(k: int, steps: int) -> np.ndarray:
    """All weights [N, K] that are multiples of ``1 / steps``: N = C(steps + k - 1, k - 1).

    From (1, 0, ...) to (..., 0, 1): the first weight falls first.
    """
    if k < 1 or steps < 1:
        raise PreferenceError(f"a simplex grid needs k >= 1 and steps >= 1, got k={k}, steps={steps}")

    def compositions(parts: int, total: int) -> list[tuple[int, ...]]:
        if parts == 1:
            return [(total,)]
        return [(first, *rest) for first in range(total, -1, -1) for rest in compositions(parts - 1, total - first)]

    return np.array(compositions(k, steps), dtype=np.float64) / steps


def evaluation_grid(k: int) -> np.ndarray:
    """The weights [N, K] at which a policy is evaluated.

    K=1: one vector. K=2: 11 vectors from (1, 0) to (0, 1) in tenths. K=3: 13 vectors, the centre exactly a third each.
    K >= 4: the finest lattice in steps of 1/5 or 1/2 with at most ``GRID_LIMIT`` vectors, or else the corners; with an
    even mixture at the end where the lattice lacks it.
    """
    if k == 1:
        return np.ones((1, 1))
    if k == 2:
        return simplex_grid(2, 10)
    if k == 3:
        return np.array([np.full(3, 1 / 3) if row is None else np.array(row) / 10 for row in _GRID_3])
    # Steps that one printed decimal can say exactly.
    steps = next((steps for steps in (5, 2) if math.comb(steps + k - 1, k - 1) <= GRID_LIMIT), 1)
    grid_NK = simplex_grid(k, steps)
    return grid_NK if steps % k == 0 else np.vstack([grid_NK, np.full(k, 1 / k)])


def parse_preference(items: Mapping[str, float], objectives: Sequence[str]) -> np.ndarray:
    """Weights by objective name -> float64 [K] in the order of ``objectives``.

    Raises PreferenceError for an unknown or missing name, a weight that is no number, not finite or negative, or a sum
    other than 1 (within 1e-6).
    """
    names = ", ".join(objectives)
    for name in items:
        if name not in objectives:
            raise PreferenceError(f"preference: unknown objective {name!r}; expected {names}")
    for name in objectives:
        if name not in items:
            raise PreferenceError(f"preference: no weight for objective {name!r}; expected {names}")
    weights_K = np.empty(len(objectives))
    for index, name in enumerate(objectives):
        try:
            weights_K[index] = float(items[name])
        except (TypeError, ValueError):
            raise PreferenceError(f"preference: weight of {name!r} must be a number, got {items[name]!r}") from None
        if not math.isfinite(weights_K[index]) or weights_K[index] < 0:
            raise PreferenceError(f"preference: weight of {name!r} must be finite and >= 0, got {items[name]!r}")
    if abs(weights_K.sum() - 1) > SUM_TOLERANCE:
        raise PreferenceError(f"preference: weights must sum to 1, got {weights_K.sum():.6g} ({dict(items)})")
    return weights_K


class PromptRenderer:
    """Writes weights into prompts: G(x, w). Training, evaluation and generation share one renderer.

    Weights are quantised before they are printed, with a fixed number of digits (``0.7``, ``1.0``). Prompts pass
    through unchanged, braces and newlines included. A plain text is a prompt of one turn.
    """

    def __init__(self, config: ConditioningConfig, objectives: Sequence[str], decimals: int, tokenizer: Any = None):
        self.config = config
        self.objectives = tuple(objectives)
        self.decimals = decimals
        self.tokenizer = tokenizer
        if not self.objectives:
            raise PreferenceError("a renderer needs at least one objective, got none")

    @classmethod
    def like(cls, other: PromptRenderer) -> Self:
        """One of this class that writes with the other's templates and tokenizer."""
        return cls(other.config, other.objectives, other.decimals, other.tokenizer)

    def text(self, prompt: Prompt | str, preference: Sequence[float]) -> str:
        """The model's whole input for a prompt and weights [K]. ``chat`` style needs the tokenizer.

        Raises PreferenceError for weights off the simplex, a dialogue in ``text`` style, and for whatever a chat
        template raises.
        """
        return self._written(as_prompt(prompt), self._weights_text(preference))

    def _written(self, prompt: Prompt, weights: str) -> str:
        asked = _fill(self.config.template, {"prompt": prompt.text, "weights": weights})
        if self.config.style == "text":
            if prompt.earlier:
                raise PreferenceError(f"style 'text' takes one text, got a dialogue ({prompt.plain!r:.80})")
            return asked
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt.earlier]
        if self.config.system is not None:
            own = [messages.pop(0)["content"]] if messages and messages[0]["role"] == "system" else []
            system = "\n\n".join([_fill(self.config.system, {"weights": weights}), *own])
            messages.insert(0, {"role": "system", "content": system})
        messages.append({"role": "user", "content": asked})
        tokenizer = self._need_tokenizer()
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.config.chat_options
            )
        except Exception as error:  # a template is a program of somebody else's, or is not there
            roles = " and ".join(message["role"] for message in messages)
            raise PreferenceError(
                f"style 'chat': the tokenizer's chat template must write a {roles} message, got {one_line(error)} "
                f"in prompt {prompt.plain!r:.80}"
            ) from None

    def token_ids(self, prompt: Prompt | str, preference: Sequence[float]) -> list[int]:
        """Token ids of ``text``, begun once however many of template, prompt and tokenizer write a beginning."""
        templated, asked, weights = self.config.style == "chat", as_prompt(prompt), self._weights_text(preference)

        def encode(text: str) -> list[int]:
            return self._special.open_ids(self._written(replace(asked, text=text), weights), templated=templated)

        return self._special.without_bos(encode, asked.text)

    def token_ids_of_each(self, prompts: Sequence[Prompt | str], preference: Sequence[float]) -> list[list[int]]:
        """`token_ids` of many prompts under one vector, in a tenth of the time."""
        weights, templated = self._weights_text(preference), self.config.style == "chat"
        begun = [index for index, prompt in enumerate(prompts) if self._special.is_begun(as_prompt(prompt).text)]
        ids = self._special.open_ids_of_each(
            [self._written(as_prompt(prompt), weights) for prompt in prompts], templated=templated
        )
        for index in begun:
            ids[index] = self.token_ids(prompts[index], preference)
        return ids

    def check_each(self, prompts: Iterable[Prompt | str]) -> None:
        """Raises PreferenceError unless w is written in every prompt: a chat template may cut it out of some."""
        if len(self.objectives) < 2:
            return
        if self.config.style == "text":  # the template itself holds the weights, and takes no dialogue
            prompts = (prompt for prompt in prompts if isinstance(prompt, Prompt) and prompt.earlier)
        corners_KK = np.eye(len(self.objectives))
        first, last = self._weights_text(corners_KK[0]), self._weights_text(corners_KK[-1])
        for prompt in map(as_prompt, prompts):
            text = self._written(prompt, first)
            # A second vector costs as much as the first, and need not be written where the first stands as it is.
            if text.count(first) <= prompt.plain.count(first) and text == self._written(prompt, last):
                raise PreferenceError(
                    f"two vectors must give two prompts, got the same text for {first!r} and {last!r} "
                    f"(the chat template leaves them out) in prompt {prompt.plain!r:.80}"
                )

    def check_options(self) -> None:
        """Raises PreferenceError unless the chat template reads every one of `chat_options`."""
        if not self.config.chat_options:
            return
        import jinja2.meta

        template = GENERATION_TAG.sub("", self._need_tokenizer().get_chat_template())
        known = jinja2.meta.find_undeclared_variables(
            jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        )
        if unknown := sorted(self.config.chat_options.keys() - known):
            raise PreferenceError(
                f"chat_options must be variables of the tokenizer's chat template ({', '.join(sorted(known))}), "
                f"got {', '.join(unknown)}"
            )

    def check(self, prompt: Prompt | str, *, decimals: int | None = None) -> None:
        """Raises PreferenceError unless all printed numbers of every objective give token ids of their own.

        A chat template may leave a message out or cut it, and a tokenizer may know none of the digits; a policy would
        then be trained and asked under one prompt whatever w is.

        Args:
            decimals: check numbers with so many digits only. None: as many as are printed.
        """
        steps = 10 ** (self.decimals if decimals is None else min(decimals, self.decimals))
        seen: dict[tuple[int, ...], str] = {}
        for first in range(len(self.objectives) - 1):
            for part in range(steps + 1):
                weights_K = np.zeros(len(self.objectives))
                weights_K[first : first + 2] = part / steps, 1 - part / steps
                text, ids = self._weights_text(weights_K), tuple(self.token_ids(prompt, weights_K.tolist()))
                if (other := seen.setdefault(ids, text)) != text:
                    raise PreferenceError(
                        f"two vectors must give two prompts, got the same {len(ids)} tokens for {other!r} and {text!r} "
                        f"({self._blame(prompt, weights_K)}) in prompt {as_prompt(prompt).plain!r:.80}"
                    )

    def _blame(self, prompt: Prompt | str, weights: np.ndarray) -> str:
        if self._weights_text(weights) in self.text(prompt, weights.tolist()):
            return "the tokenizer reads both alike"
        return "the chat template leaves them out"

    @cached_property
    def _special(self) -> SpecialTokens:
        return SpecialTokens(self._need_tokenizer())

    def _weights_text(self, preference: Any) -> str:
        weights_K = self._numbers(preference)
        if weights_K.shape != (len(self.objectives),):
            raise PreferenceError(f"expected {len(self.objectives)} weights, got shape {tuple(weights_K.shape)}")
        named = list(zip(self.objectives, weights_K, strict=True))
        if REPEATED in self.config.weight:
            names = ([name] * round(weight * 10**self.decimals) for name, weight in named)
            pieces = [{"repeated": self.config.separator.join(written)} for written in names if written]
        else:
            pieces = [{"name": name, "weight": f"{weight:.{self.decimals}f}"} for name, weight in named]
        return self.config.separator.join(_fill(self.config.weight, piece) for piece in pieces)

    def _numbers(self, numbers: Any) -> np.ndarray:
        """What is printed for the numbers given."""
        return quantize(numbers, self.decimals)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PreferenceError("this renderer was built without a tokenizer")
        return self.tokenizer


def _on_simplex(weights: Any) -> np.ndarray:
    """Weights as float64 [..., K], checked."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise PreferenceError(f"weights must have at least one objective, got shape {weights.shape}")
    good = np.isfinite(weights).all(-1) & (weights >= 0).all(-1) & (abs(weights.sum(-1) - 1) <= SUM_TOLERANCE)
    if not good.all():
        bad = weights.reshape(-1, weights.shape[-1])[~good.reshape(-1)][0]
        raise PreferenceError(f"weights must be finite, >= 0 and sum to 1, got {bad.tolist()}")
    return weights


def _units(weights: np.ndarray, unit: int) -> np.ndarray:
    """Weights [..., K] on the simplex as integers that sum to ``unit``."""
    scaled = weights / weights.sum(-1, keepdims=True) * unit
    floors = np.floor(scaled + 1e-9).astype(np.int64)
    # Rounded, so that 0.1 + 0.2 style noise does not decide a tie.
    remainders = np.round(scaled - floors, 9)
    missing = unit - floors.sum(-1, keepdims=True)
    ranks = np.argsort(np.argsort(-remainders, axis=-1, kind="stable"), axis=-1, kind="stable")
    return floors + (ranks < missing)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each ``{name}``. What is filled in is never searched again, so braces in values are safe."""
    by_placeholder = {"{" + name + "}": value for name, value in values.items()}
    pieces = re.split("(" + "|".join(map(re.escape, by_placeholder)) + ")", template)
    return "".join(by_placeholder.get(piece, piece) for piece in pieces)
