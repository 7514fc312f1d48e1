"""Rewards-in-Context (arXiv 2402.10207): the prompt asks for reward levels instead of naming weights.

A level is the share of the starting policy's responses that score no higher, in [0, 1], so it is printed like a weight,
with the same digits. RiC prints z-scores; a level is a monotone function of them that needs no other tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rewards.normalize import Normalizer, NormalizerError
from rewards.preferences import PromptRenderer
from rewards.simplex import PreferenceError, quantize


def target_levels(preference: Any) -> np.ndarray:
    """Levels [..., K] that a user with weights [..., K] asks for: w / ||w||_2 (RiC's "l2" map).

    The largest level in one objective and the smallest in all others at a one-hot w; the direction of w is kept.
    """
    weights = np.asarray(preference, dtype=np.float64)
    return weights / np.linalg.norm(weights, axis=-1, keepdims=True)


def sample_target_levels(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Levels [N, K] to explore with: uniform draws of which every one but the smallest is raised to 1."""
    levels_NK = rng.random((n, k))
    smallest_N = levels_NK.argmin(axis=1)
    raised_NK = np.ones((n, k))
    raised_NK[np.arange(n), smallest_N] = levels_NK[np.arange(n), smallest_N]
    return raised_NK


def quantile_levels(scores: np.ndarray, base: Normalizer) -> np.ndarray:
    """Levels [..., K] of raw scores [..., K]: the share of the start's scores below, those equal counted half.

    NaN stays NaN. Raises NormalizerError when the base holds no quantiles.
    """
    if not base.quantiles:
        raise NormalizerError("normalizer: was measured without quantiles, from which levels are told")
    scores = np.asarray(scores, dtype=np.float64)
    columns = [
        (np.searchsorted(known_Q, scores[..., k], "left") + np.searchsorted(known_Q, scores[..., k], "right"))
        / (2 * len(known_Q))
        for k, known_Q in enumerate(np.array(base.quantiles).T)
    ]
    return np.where(np.isfinite(scores), np.stack(columns, axis=-1), np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSampler:
    """Levels to explore with, among them what users ask for. Example: TargetSampler(ordinary=1/3)"""

    ordinary: float
    """Share of prompts that ask for what a uniformly drawn w asks for."""
    writes: Literal["weights", "levels"] = "levels"

    def draw(self, rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `rewards.simplex.WeightSampler`; there is nothing to tell apart, so w- repeats the levels."""
        levels_NK = sample_target_levels(rng, n, k)
        count = round(self.ordinary * n)
        levels_NK[:count] = target_levels(rng.dirichlet(np.ones(k), size=count))
        return levels_NK, levels_NK[:, None]


def keep_high(levels: Any, *, quantile: float) -> np.ndarray:
    """bool [N]: which responses are above the quantile in any objective, for levels [N, K] (RiC's online filter)."""
    above: np.ndarray = np.asarray(levels) > quantile
    return np.asarray(above.any(axis=-1))


class LevelRenderer(PromptRenderer):
    """Writes levels [K] in [0, 1] where its parent writes weights."""

    def _numbers(self, numbers: Any) -> np.ndarray:
        levels_K = np.asarray(numbers, dtype=np.float64)
        if not np.isfinite(levels_K).all() or (levels_K < 0).any() or (levels_K > 1).any():
            raise PreferenceError(f"levels must lie in [0, 1], got {levels_K.tolist()}")
        return levels_K.round(self.decimals)


class TargetRenderer(LevelRenderer):
    """Takes weights [K], as its parent's parent does, and writes the levels that such a user asks for."""

    def _numbers(self, numbers: Sequence[float]) -> np.ndarray:
        return super()._numbers(target_levels(quantize(numbers, self.decimals)))
