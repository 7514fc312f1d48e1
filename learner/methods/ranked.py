"""All responses of a prompt at once, by their order: LiPO-lambda, and a cross-entropy for each objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from learner.examples import Group
from learner.methods.method import ANCHOR, AnchoredSection, Method

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Example: Worth(worth=(0.2, 0.9, -0.4))"""

    worth: tuple[float, ...]
    """[N] of each response."""


class _Ranked(Method[Worth]):
    config: AnchoredSection
    metrics = (ANCHOR,)

    def loss(self, at: Evaluated[Worth], coefficients: Tensor | None = None) -> LossOutput:
        """Mean over prompts of `of_prompt`."""
        import torch

        from learner.losses import LossOutput

        logratio_S = at.logratio()
        counts = [len(targets.worth) for targets in at.targets]
        losses = [
            self.of_prompt(self.config.beta_c * at.anchor * logratio_N, torch.tensor(targets.worth).to(logratio_N))
            for logratio_N, targets in zip(logratio_S.split(counts), at.targets, strict=True)
        ]
        loss = torch.stack(losses).mean()
        parts = {"loss": loss, "loss_alignment": loss, "logratio_mean": logratio_S.mean()}
        return LossOutput(loss=loss, metrics={name: value.detach() for name, value in parts.items()})

    def of_prompt(self, scaled_N: Tensor, worth_N: Tensor) -> Tensor:
        """Its loss. `scaled_N`: beta lr of each response."""
        raise NotImplementedError


class LipoLambda(_Ranked):
    """- sum over i better than j of D_ij log sigmoid(beta (lr_i - lr_j)), worth psi = w . s (LiPO, arXiv 2402.01878).

    D_ij = |2^psi_i - 2^psi_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, ranks from 1 by the policy's own beta lr:
    pairs that stand wrong near the top count most. Responses of equal worth make no pair. With two of them it is
    `mo-odpo` with a pair weighed by D.
    """

    class Config(AnchoredSection):
        type: Literal["lipo-lambda"] = "lipo-lambda"

    def label(self, group: Group) -> Worth:
        return Worth(worth=tuple((group.scores @ group.preference).tolist()))

    def of_prompt(self, scaled_N: Tensor, worth_N: Tensor) -> Tensor:
        return lipo_lambda_loss(scaled_N, worth_N)


class Listwise(_Ranked):
    """sum_k w_k CE(softmax(s_k / temperature), softmax(beta lr)) over the N responses of a prompt.

    The form for more than two responses of `mo-odpo-per-objective`: the objectives' softmaxes are targets, mixed by w;
    with two responses that do not tie, and a temperature near 0, it is that method. Stationary where beta lr is the log
    of the mixture and a constant.
    """

    class Config(AnchoredSection):
        type: Literal["listwise"] = "listwise"
        temperature: float = Field(default=1.0, gt=0)
        """Of the targets, in units of the scores as the method sees them."""

    config: Config

    def label(self, group: Group) -> Worth:
        """The probability of each response in the mixture."""
        scaled_NK = (group.scores - group.scores.max(axis=0)) / self.config.temperature
        share_NK = np.exp(scaled_NK) / np.exp(scaled_NK).sum(axis=0)
        return Worth(worth=tuple((share_NK @ group.preference).tolist()))

    def of_prompt(self, scaled_N: Tensor, worth_N: Tensor) -> Tensor:
        return -(worth_N * scaled_N.log_softmax(-1)).sum()


def lipo_lambda_loss(scaled: Tensor, worth: Tensor) -> Tensor:
    """Of one prompt. Args: scaled, worth: float [N], beta lr with gradient and psi."""
    import torch
    from torch.nn.functional import logsigmoid

    rank = torch.empty_like(worth)
    rank[scaled.detach().argsort(descending=True, stable=True)] = torch.arange(1, len(worth) + 1).to(worth)
    gain, discount = 2**worth, 1 / torch.log1p(rank)
    delta = (gain[:, None] - gain).abs() * (discount[:, None] - discount).abs()
    better = worth[:, None] > worth
    return -(delta * better * logsigmoid(scaled[:, None] - scaled)).sum()
