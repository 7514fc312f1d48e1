"""Rewarded soups (arXiv 2306.04488), with online DPO for each expert: K policies, averaged for each w."""

from collections.abc import Iterator, Sequence
from typing import Literal

from learner.methods.method import Tried, Work
from learner.methods.mo_odpo import MoOdpo, PairSection


class RewardedSoups(MoOdpo):
    """One expert for each objective, from one start, trained under its one-hot w for its share of the steps.

    The policy of w is the average of the experts' weights, sum_k w_k theta_k (`learner.soup`), asked with w in the
    prompt; at a one-hot w it is that expert. The experts share the steps, so a soup samples as many responses as any
    other method.
    """

    class Config(PairSection):
        type: Literal["rewarded-soups"] = "rewarded-soups"

    def problems(self, work: Work) -> Iterator[str]:
        yield from super().problems(work)
        if work.fixed:
            yield "preferences.fixed must not be set where each expert has its own vector"
        if work.steps % work.num_objectives:
            yield (
                f"loop.steps must be a multiple of the {work.num_objectives} objectives, each of which trains one "
                f"expert on its share, got {work.steps}"
            )

    def parts(self, num_objectives: int, steps: int) -> list[tuple[str, ...]]:
        return [
            (
                "method=mo-odpo",
                f"preferences.fixed={[float(j == k) for j in range(num_objectives)]}",
                f"loop.steps={steps // num_objectives}",
            )
            for k in range(num_objectives)
        ]

    def candidates(self, num_objectives: int) -> list[tuple[float, ...]]:
        return []

    def coefficients(self, preference: Sequence[float], tried: Tried | None) -> list[float]:
        return list(preference)
