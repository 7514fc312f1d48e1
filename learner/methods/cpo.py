"""Controllable preference optimisation (arXiv 2402.19085): w asks for levels, the nearest response wins."""

from typing import Literal

import numpy as np

from learner.examples import Group
from learner.methods.mo_odpo import PairMethod, PairSection
from rewards.targets import target_levels


class Cpo(PairMethod):
    """DPO with the winner by R = - sum over asked k of |s_k - c_k| + sum over the others of s_k, s in levels [0, 1].

    c are the levels that w asks for, w / ||w||_2 (`rewards.targets`), and w is what the prompt says; an objective of
    weight 0 is not asked for, and counts as it stands, as the paper's unconditioned ones do. Levels are shares of the
    start's responses in the place of the paper's ratings 1 to 5, and its supervised stage is the start. At a one-hot w
    the response wins that is best in the sum of all objectives.
    """

    class Config(PairSection):
        type: Literal["cpo"] = "cpo"
        scores: Literal["quantile"] = "quantile"

    def num_judges(self, num_objectives: int) -> int:
        return 1

    def compared(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        asked_K, levels_K = group.preference > 0, target_levels(group.preference)
        reached_NK = np.where(asked_K, -np.abs(group.scores - levels_K), group.scores)
        return reached_NK.sum(axis=1, keepdims=True), np.ones(1)
