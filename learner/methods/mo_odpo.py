"""Online DPO on pairs of responses under w: one winner for each objective, or one by the weighted score.

`PairMethod` is what every method on pairs shares: which responses meet (each judge's best and its worst), and the loss
of `learner.losses` on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from learner.examples import Example, Group
from learner.methods.method import ANCHOR, AnchoredSection, Method
from rewards.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.pair_losses import PairLoss
    from learner.sequences import Evaluated


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTargets:
    """The pairs of one prompt's responses.

    Example: PairTargets(responses=((0, 1),), weight=array([[[.7, 0.], [0., .3]]])), two objectives that disagree
    """

    responses: tuple[tuple[int, int], ...]
    """[P] which of the example's responses are y1 and y2."""
    weight: np.ndarray
    """float64 [P, K, 2]: what each objective adds to (a1, a2)."""


class PairSection(AnchoredSection):
    """Settings of every method on pairs."""

    length_normalized: bool = False
    """Log-ratios per response token instead of per response (not the paper's); needs larger betas."""
    min_margin: float = Field(default=0.0, ge=0)
    """Least difference of normalised scores that makes a winner; a smaller one counts as a tie."""
    pair_loss: Literal["sigmoid", "ipo", "bco"] = "sigmoid"
    """What a winner gains over the loser: DPO's (the paper's), IPO's, or BCO's (`learner.pair_losses`)."""
    divergence: Literal["reverse-kl", "js", "forward-kl", "alpha"] = "reverse-kl"
    """From the reference, as in f-DPO; `reverse-kl` is DPO's own."""
    divergence_alpha: float = Field(default=0.5, gt=0, lt=1)
    """Of the divergence `alpha`: towards 0 it is reverse KL, towards 1 forward KL."""
    sft: float = Field(default=0.0, ge=0)
    """Weight of -log pi of the winner for each of its tokens (RPO, arXiv 2405.16436): keeps its likelihood from falling
    together with the loser's."""

    @model_validator(mode="after")
    def _a_divergence_has_a_difference(self) -> PairSection:
        if self.pair_loss == "bco" and self.divergence != "reverse-kl":
            raise ValueError(f"divergence must be reverse-kl with pair_loss bco, got {self.divergence}")
        return self

    @property
    def form(self) -> PairLoss:
        from learner.pair_losses import PairLoss

        return PairLoss(kind=self.pair_loss, divergence=self.divergence, alpha=self.divergence_alpha)


class PerObjectiveSection(PairSection):
    """Settings of the methods with one winner per objective."""

    routing: Literal["expectation", "sampled"] = "expectation"
    """Every objective weighs w_k in a pair, or one objective Z ~ w takes it all."""


class PairMethod(Method[PairTargets]):
    """L_YC on every pair, one winner for each objective; the base of all methods on pairs."""

    config: PairSection
    metrics: ClassVar[tuple[Metric, ...]] = (
        ANCHOR,
        Metric(
            key="loss_sft",
            label="supervised loss",
            definition="Weighted -log pi of the winners for each of their tokens; with `method.sft`.",
        ),
    )

    @property
    def beta_w(self) -> float:
        """Strength of the information term L_YW; 0 turns it and its forward passes off."""
        return 0.0

    @property
    def stop_gradient(self) -> bool:
        """Whether L_YW holds lr(y|w+) fixed."""
        return True

    @property
    def negatives(self) -> bool:
        return self.beta_w > 0

    def compared(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """What decides: scores [N, J] by J judges, and what each judge counts [J]."""
        return group.scores, group.preference

    def num_judges(self, num_objectives: int) -> int:
        """Most judges that `compared` gives a weight, each of which makes a pair."""
        return num_objectives

    def responses_per_example(self, num_responses: int, num_objectives: int) -> int:
        return min(num_responses, 2 * self.num_judges(num_objectives))

    def label(self, group: Group) -> PairTargets | None:
        return self.pairs(group)

    def pairs(self, group: Group) -> PairTargets:
        """Each judge's best response against its worst; judges that choose the same two share a pair.

        A prompt of which no judge can choose keeps its first two responses, without weight: L_YW can still use them.
        """
        import torch

        from learner.pairs import extreme_pairs, objective_weights

        scores_NJ, weight_J = (torch.from_numpy(np.ascontiguousarray(part)) for part in self.compared(group))
        _, responses_P2, own_PJ = extreme_pairs(scores_NJ[None], weight_J[None])
        weight_PJ2 = objective_weights(scores_NJ[responses_P2], own_PJ, min_margin=self.config.min_margin)
        pairs = tuple((first, second) for first, second in responses_P2.tolist())
        return PairTargets(responses=pairs, weight=weight_PJ2.numpy())

    def examples(self, group: Group) -> list[Example[PairTargets]]:
        """Only the responses that stand in a pair are passed."""
        return [_without_spares(example) for example in super().examples(group)]

    def loss(self, at: Evaluated[PairTargets], coefficients: Tensor | None = None) -> LossOutput:
        """`learner.losses.mi_epo_loss` of all pairs; a prompt's pairs share its weight in the means over prompts."""
        import torch

        from learner.losses import mi_epo_loss

        pairs = [targets.responses for targets in at.targets]
        logratio = at.logratio(per_token=self.config.length_normalized)[at.passes(pairs)]  # [1 + M, P, 2]
        weight_PK2 = torch.from_numpy(np.concatenate([targets.weight for targets in at.targets])).to(logratio.device)
        if coefficients is not None:
            weight_PK2 = weight_PK2 * coefficients.to(weight_PK2)[:, None]
        weight_y1, weight_y2 = weight_PK2.sum(1).to(logratio.dtype).unbind(-1)
        share = torch.tensor([1 / len(own) for own in pairs for _ in own], device=logratio.device)
        output = mi_epo_loss(
            logratio[0],
            logratio[1:] if self.negatives else None,
            weight_y1,
            weight_y2,
            beta_c=self.config.beta_c * at.anchor,
            beta_w=self.beta_w,
            stop_gradient=self.stop_gradient,
            prompt_share=share,
            form=self.config.form,
        )
        if not self.config.sft:
            return output
        mean_logprob_S = at.block.sum_by_sequence(at.logprob) / at.lengths()
        winners_P2 = -mean_logprob_S[at.passes(pairs)[0]] * torch.stack([weight_y1, weight_y2], -1)
        return output.with_term("loss_sft", self.config.sft * winners_P2.sum() / len(pairs))


def _without_spares(example: Example[PairTargets]) -> Example[PairTargets]:
    pairs = example.targets.responses
    named = sorted({response for pair in pairs for response in pair})
    place = {response: index for index, response in enumerate(named)}
    return Example(
        prompts=example.prompts,
        responses=tuple(example.responses[response] for response in named),
        targets=PairTargets(
            responses=tuple((place[first], place[second]) for first, second in pairs), weight=example.targets.weight
        ),
        preference=example.preference,
    )


class MoOdpoPerObjective(PairMethod):
    """L_YC alone: MO-ODPO in the form of the MI-EPO paper (arXiv 2607.01392, eq. 5), i.e. MI-EPO with beta_w = 0.

    With DPO's loss stationary at beta_c d = logit(a1 / (a1 + a2)): a conflicting pair asks for a bounded margin.
    """

    class Config(PerObjectiveSection):
        type: Literal["mo-odpo-per-objective"] = "mo-odpo-per-objective"

    config: PerObjectiveSection

    def num_judges(self, num_objectives: int) -> int:
        return 1 if self.config.routing == "sampled" else num_objectives

    def compared(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        preference_K = group.preference
        if self.config.routing == "sampled":
            objective = np.random.default_rng(group.seed).choice(len(preference_K), p=preference_K)
            preference_K = np.eye(len(preference_K))[objective]
        return group.scores, preference_K


class MoOdpo(PairMethod):
    """Online DPO on the winner by w . s, with normalised scores (arXiv 2503.00295).

    Equals the per-objective rule where w is one-hot or all objectives agree; a pair of equal weighted scores is unused.
    """

    class Config(PairSection):
        type: Literal["mo-odpo"] = "mo-odpo"

    def num_judges(self, num_objectives: int) -> int:
        return 1

    def compared(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        return (group.scores @ group.preference)[:, None], np.ones(1)
