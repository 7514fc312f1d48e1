"""A judge inside a Ray actor: scores responses on one objective, never sees the preference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.metrics import JudgeMetrics
from actors.processes import ActorSpec, start_actors, stop_actors
from actors.types import ActorFailedError
from rewards.config import ObjectiveConfig, Panel, panel_name, panels
from rewards.environment import is_device_failure, one_line, process_environment, whole_threads
from rewards.judge_sections import refreshed
from rewards.judges import Scores, build_scorers
from rewards.scorers import NO_COLUMNS, Columns, ScorerError
from rewards.sources import files_of, load_file

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Judge = Literal["reward", "current", "audit", "annotator"]
"""``reward``: the recipe's scorer, by which every evaluation measures. ``current``: the same as it was fitted further,
which the policy learns from. ``audit``: the independent second judge, for evaluation only. ``annotator``: whom the
scorer is fitted further to."""
_ROLES: dict[Judge, str] = {"reward": "scorer", "current": "scorer", "audit": "audit", "annotator": "annotator"}


class RewardActor:
    """One replica of a panel's judges. All judges but the first are loaded when they are first asked.

    Args:
        panel: the recipe's sections of the objectives that are judged here.
        files: path -> text of the Python files that they name; this node may not have them.
    """

    def __init__(self, panel: Panel, files: Mapping[str, str] | None = None) -> None:
        self.panel = panel
        self._files = files or {}
        self._scores: dict[Judge, Scores] = {}
        self._fitted: Path | None = None
        self._metrics: JudgeMetrics | None = None

    def __repr__(self) -> str:
        return f"RewardActor(objective={panel_name(self.panel)})"

    def ready(self) -> dict[str, Any]:
        """Load the reward judge (once) and tell what runs here. Raises ScorerError when it cannot be loaded."""
        self._scores_of("reward")
        return {"objective": panel_name(self.panel), "scorer": self.panel[0].scorer.type, "pid": os.getpid()}

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        judge: Judge = "reward",
        columns: Columns = NO_COLUMNS,
        fitted: Path | None = None,
    ) -> np.ndarray:
        """Score ``responses[i]`` as an answer to ``prompts[i]``, in whose row of the data ``columns[name][i]`` stands.

        Args:
            fitted: where the ``current`` judge lies (`rewards.judge_sections.refreshed`); None: the recipe's still.

        Returns:
            float64 [N, objectives of the panel]; NaN where a score is missing.

        Raises:
            ScorerError: the judge fails as a whole, or the objective has no such judge.
            ActorFailedError: the GPU failed under it.
        """
        annotated = any(objective.annotator is not None for objective in self.panel)
        if judge == "current" and (fitted is None or not annotated):
            judge = "reward"
        elif judge == "current" and fitted != self._fitted:
            self._scores.pop(judge, None)
            self._fitted = fitted
        try:
            scores = self._scores_of(judge)(prompts, responses, columns)
        except Exception as error:
            if is_device_failure(error):
                raise ActorFailedError(one_line(error)) from error
            raise
        self._metrics = self._metrics or JudgeMetrics(panel_name(self.panel))
        self._metrics.scored(len(scores), missing=len(scores) - int(np.isfinite(scores).all(axis=-1).sum()))
        return scores

    def _scores_of(self, judge: Judge) -> Scores:
        if judge not in self._scores:
            configs = []
            for objective in self.panel:
                config = objective.judges.get(_ROLES[judge])
                if config is None:
                    raise ScorerError(f"objective {objective.name!r} has no {judge} judge")
                if judge == "current" and self._fitted is not None:
                    config = refreshed(objective.name, config, self._fitted)
                configs.append(config)
            for path, text in self._files.items():
                load_file(path, text)
            self._scores[judge] = build_scorers(configs)
        return self._scores[judge]


def start_rewards(
    objectives: Sequence[ObjectiveConfig], *, run_name: str, start_timeout_s: float = 600
) -> dict[tuple[str, ...], list[ActorHandle]]:
    """Start every replica of every panel side by side and wait until all have loaded.

    Returns:
        Names of a panel's objectives -> Ray actors named ``<run_name>/reward-<panel>-<replica>``, in recipe order.

    Raises:
        ScorerError: no room on the cluster, or a judge that could not load; nothing is left running.
    """
    specs = {
        tuple(objective.name for objective in panel): [
            ActorSpec(
                name=f"{run_name}/reward-{panel_name(panel)}-{replica}",
                num_cpus=panel[0].num_cpus,
                num_gpus=panel[0].num_gpus,
                env=process_environment(threads=whole_threads(panel[0].num_cpus), num_gpus=panel[0].num_gpus),
                node_labels=panel[0].node_labels,
                kwargs={"panel": panel, "files": files_of(panel)},
            )
            for replica in range(panel[0].replicas)
        ]
        for panel in panels(objectives)
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
    return {names: [next(handles) for _ in replicas] for names, replicas in specs.items()}


def stop(rewards: Mapping[tuple[str, ...], Sequence[ActorHandle]]) -> None:
    """End the reward actors and give their resources back."""
    stop_actors([handle for replicas in rewards.values() for handle in replicas])
