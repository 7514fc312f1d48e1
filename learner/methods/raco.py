"""RACO (arXiv 2602.02495): the objectives' gradients are combined by clipped CAGrad (arXiv 2110.14048)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from learner.methods.mo_odpo import MoOdpoPerObjective, PairTargets, PerObjectiveSection
from rewards.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from learner.sequences import Evaluated


class CombinedGradients(MoOdpoPerObjective):
    """What every method shares that weighs the objectives' DPO losses by their gradients (`method.Combines`)."""

    metrics = (
        *MoOdpoPerObjective.metrics,
        Metric(
            key="coefficient_max",
            label="largest coefficient",
            definition="Largest factor on an objective's part of the loss; 1 where nothing is combined.",
        ),
    )

    def objective_losses(self, at: Evaluated[PairTargets]) -> Tensor:
        import torch

        count = at.targets[0].weight.shape[1]
        return torch.stack([self.loss(at, only_k).loss for only_k in torch.eye(count)])

    def combine(self, gram: Tensor, weight: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(self.mixture(gram.numpy(), weight.numpy()))

    def mixture(self, gram: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """`combine` in float64 arrays: [K] of [K, K] and [K]."""
        raise NotImplementedError


class Raco(CombinedGradients):
    """The update g_0 + c ||g_0|| G_p / ||G_p|| with g_0 = sum_k w_k g_k, G_p = sum_k p_k g_k and p = min(p*, w),

    where p* minimises <G_p, g_0> + c ||g_0|| ||G_p|| over the simplex (`conflict_averse`). g_k is the
    gradient of objective k's DPO loss on the pairs. The paper has one w for a run: under `preferences.fixed` this is
    its update. Where w varies, prompt x adds w_k(x) / mean(w_k) times its gradient to g_k, and w is the batch's mean:
    a prompt whose w has no place for an objective is not moved by it. c = 0 is `mo-odpo-per-objective`.
    """

    class Config(PerObjectiveSection):
        type: Literal["raco"] = "raco"
        c: float = Field(default=0.4, ge=0, lt=1)
        """How far the update may leave g_0, as a share of its length (the paper's)."""

    config: Config

    def mixture(self, gram: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return conflict_averse(gram, weight, c=self.config.c)


def conflict_averse(gram: np.ndarray, weight: np.ndarray, *, c: float) -> np.ndarray:
    """Coefficients [K] of the weighted gradients w_k g_k in g_0 + c ||g_0|| G_p / ||G_p||, p = min(p*, w).

    Args:
        gram: float64 [K, K], <w_j g_j, w_k g_k>.
        weight: float64 [K], w; an objective of weight 0 has no gradient and keeps the coefficient 1.
        c: in [0, 1).
    """
    coefficients_K = np.ones(len(weight))
    asked = np.flatnonzero(weight > 0)
    w = weight[asked]
    gram_of_g = gram[np.ix_(asked, asked)] / np.outer(w, w)
    reach = c * float(np.sqrt(max(w @ gram_of_g @ w, 0.0)))
    if not reach:
        return coefficients_K
    p = np.minimum(worst_mixture(gram_of_g, gram_of_g @ w, reach), w)
    length = float(np.sqrt(max(p @ gram_of_g @ p, 0.0)))
    if length > 1e-9 * reach:
        coefficients_K[asked] += reach / length * p / w
    return coefficients_K


def worst_mixture(gram: np.ndarray, inner: np.ndarray, reach: float) -> np.ndarray:
    """The p of the simplex [K] that minimises p.inner + reach sqrt(p.gram.p), exactly: the best of all its faces.

    On a face, u = p / ||G_p|| solves gram u = (level - inner) / reach with u.gram.u = 1, a quadratic in the level.
    The value is convex, so the minimum is at a vertex or at such a point of some face.

    Args:
        gram: float64 [K, K], positive semi-definite.
        inner: float64 [K].
        reach: > 0.
    """
    count = len(inner)
    candidates = list(np.eye(count))
    ridge = 1e-12 * max(float(np.trace(gram)), 1e-300) * np.eye(count)
    for size in range(2, count + 1):
        for face in map(list, itertools.combinations(range(count), size)):
            inverse = np.linalg.pinv((gram + ridge)[np.ix_(face, face)])
            ones, b = np.ones(size), inner[face]
            square, line, constant = ones @ inverse @ ones, ones @ inverse @ b, b @ inverse @ b - reach**2
            discriminant = line**2 - square * constant
            if discriminant < 0 or square <= 0:
                continue
            for level in ((line + np.sqrt(discriminant)) / square, (line - np.sqrt(discriminant)) / square):
                u = inverse @ (level - b)
                if u.min() >= 0 and u.sum() > 0:
                    candidates.append(np.zeros(count))
                    candidates[-1][face] = u / u.sum()
    return min(candidates, key=lambda p: float(p @ inner + reach * np.sqrt(max(p @ gram @ p, 0.0))))
