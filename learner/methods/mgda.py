"""MGDA on the objectives' gradients: the shortest vector among their mixtures (Desideri 2012; arXiv 1810.04650)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from learner.methods.mo_odpo import PerObjectiveSection
from learner.methods.raco import CombinedGradients, worst_mixture

SMALLEST_GRADIENT = 1e-12
"""Squared length of an objective's gradient that counts, as a share of all of them."""


class Mgda(CombinedGradients):
    """The update sum_k p_k g_k / w_k with p = argmin over the simplex of ||sum_k p_k g_k / w_k||, g_k as in `raco`.

    To first order it raises no objective's loss, and lowers each in proportion to its w: <g_k, u> = w_k ||u||^2 for the
    update u and every k with p_k > 0. It stops where none can be lowered without another. MGDA has no w; dividing by it
    is what makes one steer. An objective without weight, or without a gradient, has no say. Orthogonal gradients of one
    length give `mo-odpo-per-objective`, to whose length at even weights the update is scaled.
    """

    class Config(PerObjectiveSection):
        type: Literal["mgda"] = "mgda"

    def mixture(self, gram: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return min_norm(gram, weight)


def min_norm(gram: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients [K] of the weighted gradients w_k g_k: p_k / (w_k^2 n) of the n that have a say, 1 of the others.

    Args:
        gram: float64 [K, K], <w_j g_j, w_k g_k>.
        weight: float64 [K], w.
    """
    coefficients_K = np.ones(len(weight))
    own = np.diag(gram)
    asked = np.flatnonzero((weight > 0) & (own > SMALLEST_GRADIENT * own.sum()))
    if len(asked):
        square_K = weight[asked] ** 2
        mixed = worst_mixture(gram[np.ix_(asked, asked)] / np.outer(square_K, square_K), np.zeros(len(asked)), 1.0)
        coefficients_K[asked] = mixed / square_K / len(asked)
    return coefficients_K
