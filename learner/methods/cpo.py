"""Controllable preference optimisation (arXiv 2402.19085): the prompt asks for levels, the nearest response wins."""

from typing import Literal

import numpy as np

from learner.examples import Group
from learner.methods.mo_odpo import PairMethod, PairSection
from rewards.preferences import WeightSampler
from rewards.targets import TargetSampler


class Cpo(PairMethod):
    """DPO with the winner by R = - sum over asked k of |s_k - c_k| + sum over the others of s_k, s in levels [0, 1].

    c are the levels that a w asks for, w / ||w||_2 (`rewards.targets`); an objective of level 0 is not asked for, and
    counts as it stands, as the paper's unconditioned ones do. Levels are shares of the start's responses in the place
    of the paper's ratings 1 to 5, and its supervised stage is the start. At a one-hot w with both objectives in
    conflict the response wins that is best in the sum of the two.
    """

    class Config(PairSection):
        type: Literal["cpo"] = "cpo"
        scores: Literal["quantile"] = "quantile"

    asks_for = "levels"

    def sampler(self, step: int, steps: int) -> WeightSampler:
        return TargetSampler(ordinary=1.0)

    def num_judges(self, num_objectives: int) -> int:
        return 1

    def compared(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        asked_K = group.preference > 0
        reached_NK = np.where(asked_K, -np.abs(group.scores - group.preference), group.scores)
        return reached_NK.sum(axis=1, keepdims=True), np.ones(1)
