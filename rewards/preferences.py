"""How weights are written into a prompt: G(x, w). Importing this module needs numpy and pydantic only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from rewards.config import REPEATED, ConditioningConfig
from rewards.environment import one_line
from rewards.prompts import Prompt, as_prompt
from rewards.simplex import PreferenceError, quantize
from rewards.tokens import SpecialTokens

GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")
"""Tags of transformers' own around what a model answers; no other reader of chat templates knows them."""


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


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each ``{name}``. What is filled in is never searched again, so braces in values are safe."""
    by_placeholder = {"{" + name + "}": value for name, value in values.items()}
    pieces = re.split("(" + "|".join(map(re.escape, by_placeholder)) + ")", template)
    return "".join(by_placeholder.get(piece, piece) for piece in pieces)
