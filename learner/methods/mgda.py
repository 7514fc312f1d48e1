"""MGDA on the objectives' gradients: the shortest vector among their mixtures (Desideri 2012; arXiv 1810.04650)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from learner.methods.mo_odpo import PerObjectiveSection
from learner.methods.raco import CombinedGradients, worst_mixture

if TYPE_CHECKING:
    from torch import Tensor


class Mgda(CombinedGradients):
    """The update K sum_k p_k w_k g_k with p = argmin over the simplex of ||sum_k p_k w_k g_k||, g_k as in `raco`.

    It lowers no objective's loss to first order, or stops where none can be lowered without another. The gradients are
    weighed by w before they are mixed, so that an objective without weight has no say; equal, orthogonal gradients give
    p = 1/K, which is `mo-odpo-per-objective`.
    """

    class Config(PerObjectiveSection):
        type: Literal["mgda"] = "mgda"

    def combine(self, gram: Tensor, weight: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(min_norm(gram.numpy(), weight.numpy()))


def min_norm(gram: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients [K] of the weighted gradients: as many times p as there are objectives with weight, 1 elsewhere.

    Args:
        gram: float64 [K, K], inner products of the weighted gradients.
        weight: float64 [K]; an objective of weight 0 has no gradient.
    """
    coefficients_K = np.ones(len(weight))
    asked = np.flatnonzero(weight > 0)
    own = gram[np.ix_(asked, asked)]
    if np.trace(own) > 0:
        coefficients_K[asked] = len(asked) * worst_mixture(own, np.zeros(len(asked)), 1.0)
    return coefficients_K
