"""PAMA (arXiv 2508.07768): the advantage of a response is that of the objective it serves least."""

from typing import Literal

import numpy as np

from learner.examples import Group
from learner.methods.grpo import Advantages, PolicyGradient, PolicyGradientSection, standardized


class Pama(PolicyGradient):
    """A_j = min over asked k of max(s_jk - mean_k, 0) / std_k: what the least satisfied objective gains.

    PAMA bounds the min-norm problem of MGDA by min over the simplex of (sum_k c_k A_k)^2, whose solution for advantages
    that are not negative is the least of them, in O(K). `credit: response` takes it for every response; `batch` takes
    the least of the objectives' means over the prompt's responses, one number for all of them, as a public port does.
    The ratio is to the policy that sampled, as in `grpo`, where PAMA's is to the reference. It has one trade-off;
    objectives of weight 0 are not asked, which is all that w does, so it is hardly steered.
    """

    class Config(PolicyGradientSection):
        type: Literal["pama"] = "pama"
        credit: Literal["response", "batch"] = "response"
        """Whose advantage is the least one: each response's own, or one for all responses of the prompt."""

    config: Config

    def label(self, group: Group) -> Advantages:
        asked = group.preference > 0
        gained_NK = np.maximum(standardized(group.scores)[:, asked], 0)
        advantage_N = gained_NK.min(axis=1)
        if self.config.credit == "batch":
            advantage_N = np.full(len(gained_NK), gained_NK.mean(axis=0).min())
        return Advantages(advantage=tuple(advantage_N.tolist()), logprobs=group.logprobs)
