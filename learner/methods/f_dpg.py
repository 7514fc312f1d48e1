"""f-DPG (arXiv 2302.08215): the policy approaches a target distribution, by the gradient of an f-divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from learner.examples import Group
from learner.methods.method import Method, MethodSection

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated

Divergence = Literal["reverse-kl", "forward-kl", "js"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energies:
    """Example: Energies(energy=(7.0, -3.0))"""

    energy: tuple[float, ...]
    """[N] w . s / beta, nats."""


class FDpg(Method[Energies]):
    """Target p(y|x) = p0(y|x) exp(w . s(y) / beta) / Z(x), whose optimum under reverse KL is that of RLHF with beta.

    The gradient of D_f(pi || p) is E_pi[f'(pi / p) grad log pi]; with log(pi / p) = lr - w . s / beta + log Z and Z the
    mean over the prompt's N responses of exp(w . s / beta - lr), which are taken for pi's own, also where they are a
    version older. f': reverse KL log u, forward KL -1/u (a response in proportion to how much the target prefers it),
    Jensen-Shannon log(2u / (1 + u)). The mean over the prompt's responses is its baseline. At the target nothing moves.
    """

    class Config(MethodSection):
        type: Literal["f-dpg"] = "f-dpg"
        beta_c: float = Field(default=0.1, gt=0)
        """Temperature of the target: how many deviations of reward are worth a nat."""
        divergence: Divergence = "js"

    config: Config

    def label(self, group: Group) -> Energies:
        return Energies(energy=tuple((group.scores @ group.preference / self.config.beta_c).tolist()))

    def loss(self, at: Evaluated[Energies], coefficients: Tensor | None = None) -> LossOutput:
        import torch

        from learner.losses import LossOutput

        logprob_S, logratio_S = at.block.sum_by_sequence(at.logprob), at.logratio()
        counts = [len(targets.energy) for targets in at.targets]
        parts = zip(logprob_S.split(counts), logratio_S.detach().split(counts), at.targets, strict=True)
        losses = []
        for logprob_N, logratio_N, targets in parts:
            energy_N = torch.tensor(targets.energy).to(logratio_N)
            reward_N = pseudo_reward(logratio_N, energy_N, self.config.divergence)
            losses.append(-(reward_N * logprob_N).mean())
        loss = torch.stack(losses).mean()
        metrics = {"loss": loss, "logratio_mean": logratio_S.mean()}
        return LossOutput(loss=loss, metrics={name: value.detach() for name, value in metrics.items()})


def pseudo_reward(logratio: Tensor, energy: Tensor, divergence: Divergence) -> Tensor:
    """[N] -f'(pi / p) of one prompt's responses, less its mean over them.

    Args:
        logratio: float [N], lr in nats, without gradient.
        energy: float [N], w . s / beta.
    """
    import torch
    from torch.nn.functional import logsigmoid

    unnormalised = energy - logratio
    log_z = unnormalised.logsumexp(0) - np.log(len(energy))
    target_over_policy = unnormalised - log_z  # at most log N
    reward = {
        "reverse-kl": target_over_policy,
        "forward-kl": target_over_policy.exp(),
        "js": -logsigmoid(-target_over_policy),
    }[divergence]
    return torch.as_tensor(reward - reward.mean())
