"""The reward actors of a run as one judge: calls to them, made again when one of them died."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.processes import losses
from actors.reward import Judge
from actors.types import Rollout
from orchestrator.cluster.fleet import Replica
from orchestrator.errors import ComponentLost
from rewards.prompts import columns_of
from rewards.scorers import Columns

if TYPE_CHECKING:
    from ray import ObjectRef


Arguments = tuple[list[str], list[str], Judge, Columns, Path | None]
"""Of `actors.reward.RewardActor.score`."""


@dataclass(slots=True)
class ScoreCall:
    """Scores on the way: one group of responses on one panel's objectives."""

    replica: Replica
    life: int
    arguments: "Arguments"
    reference: "ObjectRef[np.ndarray]"


class Judges:
    """Args:
    replicas: names of a panel's objectives -> its reward actors.
    objectives: names in recipe order.
    """

    def __init__(self, replicas: Mapping[tuple[str, ...], Sequence[Replica]], objectives: Sequence[str]) -> None:
        self.replicas = replicas
        self.fitted: Path | None = None
        """Where the judges lie that were fitted further; None: they are the recipe's still."""
        judged = [name for names in replicas for name in names]
        self._order = [judged.index(name) for name in objectives]

    def of(self, group: Sequence[Rollout], judge: Judge, objectives: Sequence[str], deadline: float) -> np.ndarray:
        """[N, A] of the group's responses by the judges of these objectives, who judge nothing else.

        Raises:
            ComponentLost, RunFailed: as `scores` does.
        """
        arguments = self._arguments(group, judge)
        calls = [_call(self.replicas[name,][0], arguments) for name in objectives]
        return np.concatenate([self._scores(call, deadline) for call in calls], axis=-1)

    def start(self, group: Sequence[Rollout], judge: Judge, turn: int) -> list[ScoreCall]:
        """One call per panel; reward models see the plain prompt, never the text of w."""
        arguments = self._arguments(group, judge)
        return [_call(replicas[turn % len(replicas)], arguments) for replicas in self.replicas.values()]

    def _arguments(self, group: Sequence[Rollout], judge: Judge) -> Arguments:
        asked = [rollout.request.prompt for rollout in group for _ in rollout.responses]
        prompts, columns = [prompt.plain for prompt in asked], columns_of(asked)
        responses = [response.text for rollout in group for response in rollout.responses]
        return prompts, responses, judge, columns, self.fitted

    def scores(self, calls: Sequence[ScoreCall], deadline: float) -> np.ndarray:
        """[N, K] of the responses of `start`'s group.

        Raises:
            ComponentLost: a reward actor did not answer by `deadline` (`time.monotonic`), or does not come back.
            RunFailed: too many failures.
        """
        return np.concatenate([self._scores(call, deadline) for call in calls], axis=-1)[:, self._order]

    def _scores(self, call: ScoreCall, deadline: float) -> np.ndarray:
        import ray

        while True:
            try:
                return ray.get(call.reference, timeout=max(0.0, deadline - time.monotonic()))
            except losses() as error:
                call.replica.died(call.life, error)
            except ray.exceptions.GetTimeoutError:
                raise ComponentLost(f"{call.replica.name}: no scores by the batch's deadline") from None
            if not call.replica.is_back(max(0.0, deadline - time.monotonic())):
                raise ComponentLost(f"{call.replica.name}: not back by the batch's deadline")
            call = _call(call.replica, call.arguments)


def _call(replica: Replica, arguments: Arguments) -> ScoreCall:
    life, reference = replica.call("score", *arguments)
    return ScoreCall(replica=replica, life=life, arguments=arguments, reference=reference)
