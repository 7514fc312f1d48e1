"""Preference vectors: samplers, grids, quantisation.

A preference is a point of the simplex: K weights, each >= 0, sum 1, in the recipe's objective order.
Shapes: N vectors, K objectives. Importing this module needs numpy and pydantic only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from rewards.config import PreferencesConfig

SUM_TOLERANCE = 1e-6
MAX_REDRAWS = 100
GRID_LIMIT = 64
"""Most vectors in the evaluation grid of four or more objectives (unless the corners alone are more)."""
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


class PreferenceSampler:
    """The recipe's `preferences`: w+ and w- from one Dirichlet or of the evaluation's grid, or a fixed w+."""

    writes: Literal["weights", "levels"] = "weights"

    def __init__(self, config: PreferencesConfig) -> None:
        self.config = config

    def draw(self, rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        if config.draw == "grid":
            positive_NK, negative_NMK = self._of_grid(rng, n, quantize(evaluation_grid(k), config.decimals))
        else:
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

    def _of_grid(self, rng: np.random.Generator, n: int, grid_GK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """w+, and w- among the vectors that are far enough from it; the farthest where none is."""
        distance_GG = np.abs(grid_GK[:, None] - grid_GK).sum(axis=-1)
        enough_G = np.minimum(self.config.min_distance, distance_GG.max(axis=1))
        positive_N, negative_NM = rng.integers(len(grid_GK), size=n), []
        for g in positive_N:
            allowed = np.flatnonzero(distance_GG[g] >= enough_G[g] - 1e-9)
            negative_NM.append(rng.choice(allowed, size=self.config.negatives))
        return grid_GK[positive_N], grid_GK[np.array(negative_NM)]


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
