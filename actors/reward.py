"""A judge inside a Ray actor: scores responses on one objective, never sees the preference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.metrics import JudgeMetrics
from actors.processes import ActorSpec, start_actors, stop_actors
from actors.types import ActorFailedError
from rewards.config import ObjectiveConfig
from rewards.environment import is_device_failure, one_line, process_environment, whole_threads
from rewards.judges import build_scorer
from rewards.scorers import NO_COLUMNS, Columns, Scorer, ScorerError
from rewards.sources import files_of, load_file

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Judge = Literal["reward", "audit"]
"""``reward``: what the policy learns from. ``audit``: the independent second judge, for evaluation only."""


class RewardActor:
    """One replica of one objective's judges. The audit judge is loaded when it is first asked.

    Args:
        objective: the recipe's section.
        files: path -> text of the Python files that it names; this node may not have them.
    """

    def __init__(self, objective: ObjectiveConfig, files: Mapping[str, str] | None = None) -> None:
        self.objective = objective
        self._files = files or {}
        self._scorers: dict[Judge, Scorer] = {}
        self._metrics: JudgeMetrics | None = None

    def __repr__(self) -> str:
        return f"RewardActor(objective={self.objective.name})"

    def ready(self) -> dict[str, Any]:
        """Load the reward judge (once) and tell what runs here. Raises ScorerError when it cannot be loaded."""
        self._scorer("reward")
        return {"objective": self.objective.name, "scorer": self.objective.scorer.type, "pid": os.getpid()}

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        judge: Judge = "reward",
        columns: Columns = NO_COLUMNS,
    ) -> np.ndarray:
        """Score ``responses[i]`` as an answer to ``prompts[i]``, in whose row of the data ``columns[name][i]`` stands.

        Returns:
            float64 [N]; NaN where a score is missing.

        Raises:
            ScorerError: the judge fails as a whole, or the objective has no audit judge.
            ActorFailedError: the GPU failed under it.
        """
        try:
            scores = self._scorer(judge).score(prompts, responses, columns)
        except Exception as error:
            if is_device_failure(error):
                raise ActorFailedError(one_line(error)) from error
            raise
        self._metrics = self._metrics or JudgeMetrics(self.objective.name)
        self._metrics.scored(len(scores), missing=len(scores) - int(np.isfinite(scores).sum()))
        return scores

    def _scorer(self, judge: Judge) -> Scorer:
        if judge not in self._scorers:
            config = self.objective.scorer if judge == "reward" else self.objective.audit
            if config is None:
                raise ScorerError(f"objective {self.objective.name!r} has no {judge} judge")
            for path, text in self._files.items():
                load_file(path, text)
            self._scorers[judge] = build_scorer(config)
        return self._scorers[judge]


def start_rewards(
    objectives: Sequence[ObjectiveConfig], *, run_name: str, start_timeout_s: float = 600
) -> dict[str, list[ActorHandle]]:
    """Start every replica of every objective side by side and wait until all have loaded.

    Returns:
        Objective name -> Ray actor handles named ``<run_name>/reward-<objective>-<replica>``, in recipe order.

    Raises:
        ScorerError: no room on the cluster, or a judge that could not load; nothing is left running.
    """
    specs = {
        objective.name: [
            ActorSpec(
                name=f"{run_name}/reward-{objective.name}-{replica}",
                num_cpus=objective.num_cpus,
                num_gpus=objective.num_gpus,
                env=process_environment(threads=whole_threads(objective.num_cpus), num_gpus=objective.num_gpus),
                node_labels=objective.node_labels,
                kwargs={"objective": objective, "files": files_of(objective)},
            )
            for replica in range(objective.replicas)
        ]
        for objective in objectives
    }
    handles = iter(
        start_actors(
            RewardActor,
            [spec for replicas in specs.values() for spec in replicas],
            group=f"{run_name}/reward",
            timeout_s=start_timeout_s,
            error=ScorerError,
        )
    )
    return {name: [next(handles) for _ in replicas] for name, replicas in specs.items()}


def stop(rewards: Mapping[str, Sequence[ActorHandle]]) -> None:
    """End the reward actors and give their resources back."""
    stop_actors([handle for replicas in rewards.values() for handle in replicas])
