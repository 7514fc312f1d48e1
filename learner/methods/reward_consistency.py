"""Reward Consistency sampling (arXiv 2504.11337): of many responses the pair on which all objectives agree, if any."""

from typing import Literal

import numpy as np

from learner.examples import Group
from learner.methods.mo_odpo import PairMethod, PairSection, PairTargets


class RewardConsistency(PairMethod):
    """DPO on the pair (i, j) with s_ik >= s_jk for every k, once strictly, and the largest w . (s_i - s_j).

    A winner that no objective opposes cannot raise another objective's loss to first order. Objectives of weight 0 are
    not asked, so that w steers: at a one-hot w it is `mo-odpo`, but for prompts on which all tie. A prompt without such
    a pair is left out; with two responses and objectives that conflict hardly one has any, which is what more responses
    are for. The paper trains without w and takes the largest total gap, which is the same at equal weights.
    """

    class Config(PairSection):
        type: Literal["reward-consistency"] = "reward-consistency"

    def num_judges(self, num_objectives: int) -> int:
        return 1

    def label(self, group: Group) -> PairTargets | None:
        asked = group.preference > 0
        gaps_NNK = (group.scores[:, None] - group.scores)[..., asked]
        agreed_NN = (gaps_NNK >= 0).all(-1) & (gaps_NNK > self.config.min_margin).any(-1)
        total_NN = np.where(agreed_NN, gaps_NNK @ group.preference[asked], -np.inf)
        winner, loser = np.unravel_index(total_NN.argmax(), total_NN.shape)
        if not agreed_NN[winner, loser]:
            return None
        weight_K2 = np.zeros((len(group.preference), 2))
        weight_K2[:, int(winner > loser)] = group.preference
        pair = (int(min(winner, loser)), int(max(winner, loser)))
        return PairTargets(responses=(pair,), weight=weight_K2[None])
