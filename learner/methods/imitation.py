"""Learning from the best of one's own responses: directional preference alignment, utility-conditioned alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from learner.examples import Example, Group
from learner.methods.method import Method, MethodSection
from rewards.simplex import simplex_grid

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated


class _Imitation(Method[None]):
    tuned_by = "learner.learning_rate"
    uses_reference = False

    def examples_per_prompt(self, num_responses: int) -> int:
        return num_responses

    def loss(self, at: Evaluated[None], coefficients: Tensor | None = None) -> LossOutput:
        from learner.losses import supervised_loss

        return supervised_loss(at.block.sum_by_sequence(at.logprob), at.lengths())


class Dpa(_Imitation):
    """The response with the largest w . s of the prompt's N is imitated under w (DPA, arXiv 2402.18571).

    Rejection sampling by direction: the paper's unit vectors on an arc and our w on the simplex give the same winner
    along one direction. A prompt whose responses are all worth the same is left out. The paper repeats whole rounds of
    sampling and fitting; here each step is one.
    """

    class Config(MethodSection):
        type: Literal["dpa"] = "dpa"

    def examples_per_prompt(self, num_responses: int) -> int:
        return 1

    def responses_per_example(self, num_responses: int, num_objectives: int) -> int:
        return 1

    def examples(self, group: Group) -> list[Example[None]]:
        worth_N = group.scores @ group.preference
        if np.ptp(worth_N) == 0:
            return []
        best = group.responses[int(worth_N.argmax())]
        preference = tuple(group.preference.tolist())
        return [Example(prompts=group.prompts[:1], responses=(best,), targets=None, preference=preference)]


class UcMoa(_Imitation):
    """Every response is imitated under the w of the utility by which it ranks best (UC-MOA, arXiv 2503.10669).

    Utilities u_w(s) = -sum_k w_k (1 - s_k)^power over a grid of w, s in levels [0, 1]: the larger the power, the more
    what is low counts. The paper's library is not public and its tokens are indices; here the w of a utility is its
    token. A rank is among the prompt's responses; of the utilities by which a response is the best one is drawn, and a
    response that is best by none is left out.
    """

    class Config(MethodSection):
        type: Literal["uc-moa"] = "uc-moa"
        scores: Literal["quantile"] = "quantile"
        power: float = Field(default=2.0, ge=1)
        """Of the utilities; 1 makes them linear."""
        steps: Literal[1, 2, 5, 10] = 10
        """Of the grid of w."""

    config: Config

    def responses_per_example(self, num_responses: int, num_objectives: int) -> int:
        return 1

    def examples(self, group: Group) -> list[Example[None]]:
        grid_WK = simplex_grid(group.scores.shape[1], self.config.steps)
        utility_NW = -((1 - group.scores) ** self.config.power) @ grid_WK.T
        best_NW = (utility_NW >= utility_NW.max(axis=0)) & (np.ptp(utility_NW, axis=0) > 0)
        rng = np.random.default_rng(group.seed)
        found = []
        for best_W, response in zip(best_NW, group.responses, strict=True):
            if best_W.any():
                asked = grid_WK[rng.choice(np.flatnonzero(best_W))].tolist()
                prompts = (group.asking(asked),)
                found.append(Example(prompts=prompts, responses=(response,), targets=None, preference=tuple(asked)))
        return found
