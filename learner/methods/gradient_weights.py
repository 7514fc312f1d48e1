"""Gradient-based dynamic reward weighting (arXiv 2509.11452): what most moves all objectives together weighs more."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from learner.methods.mo_odpo import PerObjectiveSection
from learner.methods.raco import CombinedGradients


class GradientWeights(CombinedGradients):
    """The update sum_k w'_k g_k with w'_k proportional to w_k exp(rate I_k), I_k = <g_k, sum_j g_j> / sum_j ||g_j||^2.

    g_k is the gradient of objective k's DPO loss as in `raco`. The paper lets the weights of one run drift from even
    ones by policy gradients, w <- w exp(rate I); here every update starts at the w that is asked, so that the policy
    stays steered and a step free of state, and I is relative to all gradients instead of an absolute size. rate = 0, or
    gradients of equal influence, is `mo-odpo-per-objective`.
    """

    class Config(PerObjectiveSection):
        type: Literal["gradient-weights"] = "gradient-weights"
        rate: float = Field(default=1.0, ge=0)
        """How much influence counts."""

    config: Config

    def mixture(self, gram: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return by_influence(gram, weight, rate=self.config.rate)


def by_influence(gram: np.ndarray, weight: np.ndarray, *, rate: float) -> np.ndarray:
    """Coefficients [K] of the weighted gradients w_k g_k: w'_k / w_k of the asked objectives, 1 of the others.

    Args:
        gram: float64 [K, K], <w_j g_j, w_k g_k>.
        weight: float64 [K], w.
        rate: >= 0.
    """
    coefficients_K = np.ones(len(weight))
    asked = np.flatnonzero(weight > 0)
    w = weight[asked]
    gram_of_g = gram[np.ix_(asked, asked)] / np.outer(w, w)
    size = float(np.trace(gram_of_g))
    if size <= 0:
        return coefficients_K
    influence_K = gram_of_g.sum(axis=1) / size
    grown = np.exp(rate * (influence_K - influence_K.max()))
    coefficients_K[asked] = grown * w.sum() / (w @ grown)
    return coefficients_K
