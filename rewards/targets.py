"""Rewards-in-Context (arXiv 2402.10207): the prompt asks for reward levels instead of naming weights.

A level is the share of the offline responses that score no higher, in [0, 1], so it is printed like a weight, with the
same digits. RiC prints z-scores; a level is a monotone function of them that needs no other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.preferences import PreferenceError, PromptRenderer, quantize


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


class LevelScale:
    """From scores to levels, by the ranks of the offline responses.

    Args:
        scores: float [N, K], finite, of the offline responses; N >= 1.
    """

    def __init__(self, scores: Any) -> None:
        scores_NK = np.asarray(scores, dtype=np.float64)
        if scores_NK.ndim != 2 or not len(scores_NK) or not np.isfinite(scores_NK).all():
            raise ValueError(f"scores must be finite [N, K] with N >= 1, got shape {scores_NK.shape}")
        self._sorted_KN = np.sort(scores_NK, axis=0).T

    def levels(self, scores: Any) -> np.ndarray:
        """Levels [..., K] of scores [..., K]: the share of offline scores below, those equal counted half."""
        scores = np.asarray(scores, dtype=np.float64)
        columns = [
            (np.searchsorted(known_N, scores[..., k], "left") + np.searchsorted(known_N, scores[..., k], "right"))
            / (2 * len(known_N))
            for k, known_N in enumerate(self._sorted_KN)
        ]
        return np.stack(columns, axis=-1)


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
