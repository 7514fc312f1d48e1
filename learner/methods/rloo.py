"""Policy gradients with other advantages than GRPO's: RLOO and REINFORCE."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from learner.examples import Group
from learner.methods.grpo import Advantages, PolicyGradient, PolicyGradientSection
from learner.methods.method import Work


class Rloo(PolicyGradient):
    """A_j = R_j - mean of the other responses' R, R = w . s (arXiv 2402.14740).

    The loss is GRPO's: a clipped ratio to the policy that sampled, the mean over a response's tokens where the paper
    has their sum, and a penalty for leaving the reference. Unlike GRPO's, an advantage keeps its size, so prompts on
    which responses hardly differ move little.
    """

    class Config(PolicyGradientSection):
        type: Literal["rloo"] = "rloo"

    def label(self, group: Group) -> Advantages:
        reward_N = group.scores @ group.preference
        count = len(reward_N)
        advantage_N = (reward_N - reward_N.mean()) * count / (count - 1)
        return Advantages(advantage=tuple(advantage_N.tolist()), logprobs=group.logprobs)


class Reinforce(PolicyGradient):
    """A_j = R_j, R = w . s: in deviations from the start's mean, which is its baseline. The loss is that of `rloo`."""

    class Config(PolicyGradientSection):
        type: Literal["reinforce"] = "reinforce"
        scores: Literal["standard"] = "standard"

    min_responses = 1

    def problems(self, work: Work) -> Iterator[str]:
        yield from super().problems(work)
        if work.temperature == 0:
            yield "rollout.temperature must be above 0 for a policy gradient, got 0"

    def label(self, group: Group) -> Advantages:
        reward_N: np.ndarray = group.scores @ group.preference
        return Advantages(advantage=tuple(reward_N.tolist()), logprobs=group.logprobs)
