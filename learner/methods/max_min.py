"""MaxMin-RLHF (arXiv 2402.08925): every update is for the objective that is worst off."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from learner.examples import Example, Group
from learner.methods.mo_odpo import MoOdpo, PairSection, PairTargets


class MaxMin(MoOdpo):
    """`mo-odpo` with the one-hot w of argmin_k of the batch's mean s_k, whatever w its prompts ask for.

    The paper's groups of annotators are our objectives, and its batch-wise choice is kept. There is no user's w in the
    goal: the policy becomes good for the worst objective and is not steered, which its table shows.
    """

    class Config(PairSection):
        type: Literal["max-min"] = "max-min"

    def batch(self, groups: Sequence[Group]) -> list[Example[PairTargets]]:
        if not groups:
            return []
        mean_K = np.concatenate([group.scores for group in groups]).mean(axis=0)
        worst_K = np.eye(len(mean_K))[mean_K.argmin()]
        found = []
        for group in groups:
            asked = tuple(group.preference.tolist())
            found += [replace(each, preference=asked) for each in self.examples(replace(group, preference=worst_K))]
        return found
