"""MODPO (arXiv 2310.03708): one objective decides a pair, and the others are a margin that it must beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from learner.examples import Example, Group
from learner.methods.method import ANCHOR, AnchoredSection, Method

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginTargets:
    """Example: MarginTargets(winner=0, loser=1, scale=1.43, margin=-0.2), the objective of weight .7"""

    winner: int
    loser: int
    """Of the prompt's responses."""
    scale: float
    """1 / w_j"""
    margin: float
    """What the other objectives add up to for the winner, weighed by w."""


class Modpo(Method[MarginTargets]):
    """-log sigmoid((beta d - m) / w_j) with d = lr(win) - lr(lose) and m = sum over i != j of w_i (s_i win - s_i lose).

    Objective j, drawn by w, chooses the pair: its best response against its worst. The paper's pairs are labelled data
    and its w is one for a run; here they are the policy's own, under the w of each prompt. `least_weight` bounds 1/w_j.
    At a one-hot w the margin is 0 and it is DPO. A prompt on which objective j ties is left out.
    """

    class Config(AnchoredSection):
        type: Literal["modpo"] = "modpo"
        least_weight: float = Field(default=0.05, gt=0, le=1)
        """Of w_j in 1 / w_j."""

    config: Config
    metrics = (ANCHOR,)

    def responses_per_example(self, num_responses: int, num_objectives: int) -> int:
        return 2

    def label(self, group: Group) -> MarginTargets | None:
        j = int(np.random.default_rng(group.seed).choice(len(group.preference), p=group.preference))
        own_N = group.scores[:, j]
        winner, loser = int(own_N.argmax()), int(own_N.argmin())
        if own_N[winner] == own_N[loser]:
            return None
        others = np.arange(len(group.preference)) != j
        gap_K = group.scores[winner] - group.scores[loser]
        return MarginTargets(
            winner=winner,
            loser=loser,
            scale=1 / max(float(group.preference[j]), self.config.least_weight),
            margin=float(group.preference[others] @ gap_K[others]),
        )

    def examples(self, group: Group) -> list[Example[MarginTargets]]:
        """The winner, then the loser."""
        return [
            replace(each, responses=(each.responses[each.targets.winner], each.responses[each.targets.loser]))
            for each in super().examples(group)
        ]

    def loss(self, at: Evaluated[MarginTargets], coefficients: Tensor | None = None) -> LossOutput:
        import torch

        logratio_E2 = at.logratio().view(-1, 2)
        scale_E, margin_E = (
            torch.tensor([getattr(targets, name) for targets in at.targets]).to(logratio_E2)
            for name in ("scale", "margin")
        )
        return modpo_loss(logratio_E2, scale_E, margin_E, beta=self.config.beta_c * at.anchor)


def modpo_loss(logratio: Tensor, scale: Tensor, margin: Tensor, *, beta: float) -> LossOutput:
    """Mean over E pairs.

    Args:
        logratio: float [E, 2], of winner and loser, with gradient.
        scale, margin: float [E], 1 / w_j and m.
    """
    from torch.nn.functional import logsigmoid

    from learner.losses import LossOutput

    beaten_E = beta * (logratio[:, 0] - logratio[:, 1])
    loss = -logsigmoid(scale * (beaten_E - margin)).mean()
    parts = {"loss": loss, "loss_alignment": loss, "logratio_mean": logratio.mean(), "margin_mean": beaten_E.mean()}
    return LossOutput(loss=loss, metrics={name: value.detach() for name, value in parts.items()})
