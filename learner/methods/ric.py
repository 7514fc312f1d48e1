"""Rewards-in-Context (arXiv 2402.10207): responses are imitated under prompts that say how they scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from learner.examples import Example, Group
from learner.methods.method import Method, MethodSection, Work
from rewards.metrics import Metric
from rewards.targets import TargetSampler, keep_high

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated
    from rewards.simplex import WeightSampler


class Ric(Method[None]):
    """log pi(y | G(x, levels of y)) is raised, and a user's w asks for the levels w / ||w||_2 (`rewards.targets`).

    The first half of the steps imitates responses of the start under the recipe's w; the second half responses of the
    policy of half-time to high targets, of which those above `quantile` in some objective are kept. In either half all
    batches are sampled by one policy, as the paper's two stages are; a level is the share of the start's responses
    that score no higher. RiC replays filtered rows of its offline stage online; here `ordinary` of the online prompts
    ask for what a uniformly drawn w asks for, and pass the same filter, so no rows are kept from step to step.
    """

    class Config(MethodSection):
        type: Literal["ric"] = "ric"
        scores: Literal["quantile"] = "quantile"
        quantile: float = Field(default=0.7, ge=0, lt=1)
        """A response to a high target is imitated when it is above this level in some objective (RiC's)."""
        ordinary: float = Field(default=1 / 3, ge=0, le=1)
        """Share of the second half's prompts that ask as users do instead of for high targets."""

    config: Config
    metrics = (
        Metric(
            key="logprob_mean",
            label="log-probability",
            unit="nats",
            better="higher",
            definition="Mean over imitated responses of log pi, summed over a response's tokens.",
        ),
    )
    tuned_by = "learner.learning_rate"
    min_responses = 1
    uses_reference = False
    asks_for = "levels"

    def problems(self, work: Work) -> Iterator[str]:
        yield from super().problems(work)
        if work.steps < 2:
            yield f"loop.steps must be at least 2 for a method of two stages, got {work.steps}"

    def sampler(self, step: int, steps: int) -> WeightSampler | None:
        return TargetSampler(ordinary=self.config.ordinary) if step >= steps // 2 else None

    def staleness(self, step: int, steps: int, bound: int) -> int:
        half = steps // 2
        return step - half if step >= half else step

    def examples_per_prompt(self, num_responses: int) -> int:
        return num_responses

    def examples(self, group: Group) -> list[Example[None]]:
        """Each response under the prompt that asks for exactly what it scored."""
        online = group.progress >= 0.5
        return [
            Example(
                prompts=(group.asking(levels_K.tolist()),),
                responses=(response,),
                targets=None,
                preference=tuple(levels_K.tolist()),
            )
            for levels_K, response in zip(group.scores, group.responses, strict=True)
            if not online or keep_high(levels_K[None], quantile=self.config.quantile)[0]
        ]

    def loss(self, at: Evaluated[None], coefficients: Tensor | None = None) -> LossOutput:
        from learner.losses import supervised_loss

        return supervised_loss(at.block.sum_by_sequence(at.logprob), at.lengths())
