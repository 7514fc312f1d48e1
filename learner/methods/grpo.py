"""GRPO (arXiv 2402.03300) under w: advantages relative to the prompt's other responses, weighed by w.

Each objective is normalised apart within the group and the results are added up by w, as in GDPO (arXiv 2601.05242),
so that an objective with a wide spread does not drown the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from learner.examples import Group
from learner.methods.method import Method, MethodSection
from rewards.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated


SMALLEST_SPREAD = 1e-9
"""Of scores that do not tie, as a share of the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Example: Advantages(advantage=(.7, -.7), logprobs=((-0.2, -1.1), (-0.5,)))"""

    advantage: tuple[float, ...]
    """[N]"""
    logprobs: tuple[tuple[float, ...], ...]
    """[N, T] under the policy that sampled, in nats."""


class PolicyGradientSection(MethodSection):
    """Settings of every method by policy gradient."""

    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far a token's probability ratio is rewarded (GRPO's)."""
    kl: float = Field(default=0.04, ge=0)
    """Strength of the penalty for leaving the reference (GRPO's)."""


class PolicyGradient(Method[Advantages]):
    """L = mean over responses and their tokens of -min(r A, clip(r, 1 - clip, 1 + clip) A) + kl (e^g - g - 1),

    r = pi / pi_sampler and g = log pi_ref - log pi for each token; the base of the methods that give an advantage A.
    """

    config: PolicyGradientSection
    metrics = (
        Metric(
            key="kl",
            label="KL to the reference",
            unit="nats a token",
            digits=4,
            definition="Mean over response tokens of e^g - g - 1, g = log pi_ref - log pi.",
        ),
        Metric(
            key="clipped_share",
            label="clipped tokens",
            percent=True,
            definition="Share of response tokens whose probability ratio to the sampling policy is beyond the clip.",
        ),
    )
    tuned_by = "learner.learning_rate"

    def loss(self, at: Evaluated[Advantages], coefficients: Tensor | None = None) -> LossOutput:
        import torch

        old = [token for targets in at.targets for response in targets.logprobs for token in response]
        advantage = [value for targets in at.targets for value in targets.advantage]
        counts = [len(targets.advantage) for targets in at.targets]
        share = [1 / (count * len(counts)) for count in counts for _ in range(count)]
        columns = (torch.tensor(column).to(at.logprob) for column in (advantage, share))
        advantage_S, share_S = (column[at.block.owners] for column in columns)
        return grpo_loss(
            at.logprob,
            torch.tensor(old).to(at.logprob),
            at.require_reference(),
            advantage_S,
            share_S / at.lengths()[at.block.owners],
            clip=self.config.clip,
            kl=self.config.kl,
        )


class Grpo(PolicyGradient):
    """A_j = sum_k w_k (s_jk - mean_k) / std_k over the prompt's N responses (ddof 1); 0 where an objective ties.

    With `normalize: sum` it is GRPO's own form on R = w . s: A_j = (R_j - mean) / std. The loss is `PolicyGradient`'s.
    With N = 2 only the sign of a difference counts.
    """

    class Config(PolicyGradientSection):
        type: Literal["grpo"] = "grpo"
        normalize: Literal["objectives", "sum"] = "objectives"
        """What is standardised within a prompt: each objective before w adds them up (GDPO), or their sum (GRPO)."""

    config: Config

    def label(self, group: Group) -> Advantages:
        if self.config.normalize == "sum":
            advantage_N = standardized((group.scores @ group.preference)[:, None])[:, 0]
        else:
            advantage_N = standardized(group.scores) @ group.preference
        return Advantages(advantage=tuple(advantage_N.tolist()), logprobs=group.logprobs)


def standardized(scores: np.ndarray) -> np.ndarray:
    """[N, J] in deviations (ddof 1) from the mean over N; 0 where a column ties."""
    centred_NJ = scores - scores.mean(0)
    # The mean of equal numbers is not always that number, so a spread of 0 would not show a tie.
    differs_J = np.ptp(scores, 0) > SMALLEST_SPREAD * np.maximum(1, np.abs(scores).max(0))
    return np.divide(centred_NJ, scores.std(0, ddof=1), out=np.zeros_like(centred_NJ), where=differs_J)


def grpo_loss(
    logprob: Tensor, sampled: Tensor, reference: Tensor, advantage: Tensor, share: Tensor, *, clip: float, kl: float
) -> LossOutput:
    """Clipped surrogate plus a penalty for leaving the reference, over M response tokens.

    Args:
        logprob, sampled, reference: float [M], log-probability of each token under the policy (with gradient), under
            the policy that sampled it, and under the reference.
        advantage: float [M], of the token's response.
        share: float [M], what each token counts; sums to 1.

    Returns:
        loss: scalar; metrics: `loss`, `kl` (nats a token) and `clipped_share`.
    """
    import torch

    from learner.losses import LossOutput

    ratio = (logprob - sampled).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    surrogate = -torch.minimum(ratio * advantage, clipped * advantage)
    gap = reference - logprob
    divergence = gap.exp() - gap - 1
    loss = (share * (surrogate + kl * divergence)).sum()
    parts = {"loss": loss, "kl": (share * divergence).sum(), "clipped_share": (share * (ratio != clipped)).sum()}
    return LossOutput(loss=loss, metrics={name: value.detach() for name, value in parts.items()})
