"""Policy gradients with other advantages than GRPO's: RLOO and REINFORCE."""

from typing import Literal

import numpy as np

from learner.examples import Group
from learner.methods.grpo import Advantages, Grpo, PolicyGradientSection


class Rloo(Grpo):
    """A_j = R_j - mean of the other responses' R, R = w . s (arXiv 2402.14740).

    The loss is GRPO's: a clipped ratio to the policy that sampled, and a penalty for leaving the reference. At the
    sampling policy its gradient is that of REINFORCE. Unlike GRPO's, an advantage keeps its size, so prompts on which
    responses hardly differ move little.
    """

    class Config(PolicyGradientSection):
        type: Literal["rloo"] = "rloo"

    def label(self, group: Group) -> Advantages:
        reward_N = group.scores @ group.preference
        count = len(reward_N)
        advantage_N = (reward_N - reward_N.mean()) * count / (count - 1)
        return Advantages(advantage=tuple(advantage_N.tolist()), logprobs=group.logprobs)


class Reinforce(Grpo):
    """A_j = R_j, R = w . s: in deviations from the start's mean, which is its baseline."""

    class Config(PolicyGradientSection):
        type: Literal["reinforce"] = "reinforce"

    min_responses = 1

    def label(self, group: Group) -> Advantages:
        reward_N: np.ndarray = group.scores @ group.preference
        return Advantages(advantage=tuple(reward_N.tolist()), logprobs=group.logprobs)
