"""Tchebycheff's scalarisation as the judge of pairs: what an asked objective lacks most decides (Bowman 1976)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from learner.examples import Group
from learner.methods.mo_odpo import MoOdpo, PairSection


class Tchebycheff(MoOdpo):
    """Online DPO on the winner by u(y) = (rho w . s(y) - max_k w_k (z - s_k(y))) / (1 + rho), z out of reach.

    Unlike w . s, this utility has its best answer at every point of a front, also where the front is hollow. With
    `smoothing` mu > 0 the maximum is mu log sum_k exp(. / mu) over the asked objectives (arXiv 2402.19078), which tends
    to it as mu -> 0. At a one-hot w it is `mo-odpo`: only the asked objective lacks anything. The literature's z is a
    running best of a run; a fixed one, in deviations from the start, keeps a step free of state.
    """

    class Config(PairSection):
        type: Literal["tchebycheff"] = "tchebycheff"
        rho: float = Field(default=0.05, ge=0)
        """Of the weighted sum, which decides between responses that lack as much."""
        ideal: float = 3.0
        """z, a normalised score that is out of reach."""
        smoothing: float = Field(default=0.0, ge=0)
        """Of the maximum, in normalised scores; 0: none."""

    config: Config

    def compared(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        lack_N = shortfall(group.scores, group.preference, ideal=config.ideal, smoothing=config.smoothing)
        utility_N = (config.rho * group.scores @ group.preference - lack_N) / (1 + config.rho)
        return utility_N[:, None], np.ones(1)


def shortfall(scores: np.ndarray, weight: np.ndarray, *, ideal: float, smoothing: float) -> np.ndarray:
    """float64 [N]: max_k w_k (z - s_k), or its smooth form, over the objectives of weight above 0.

    Args:
        scores: float64 [N, K].
        weight: float64 [K].
        ideal: z.
        smoothing: mu >= 0, in units of the scores.
    """
    asked = weight > 0
    lack_NK = weight[asked] * (ideal - scores)[:, asked]
    if not smoothing:
        return np.asarray(lack_NK.max(axis=1))
    most_N = lack_NK.max(axis=1)
    return np.asarray(most_N + smoothing * np.log(np.exp((lack_NK - most_N[:, None]) / smoothing).sum(axis=1)))
