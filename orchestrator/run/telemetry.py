"""What a run tells: metrics.jsonl and samples.jsonl always, a bar and one line per step, wandb when it is wanted."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.files import json_line
from orchestrator.progress import TELL, Progress, how_far
from orchestrator.run.batching import PairStatistics, ScoredBatch
from orchestrator.run.health import LikelyTokens, Watch, find_problems
from orchestrator.run.monitoring import Monitor, WandbLog, start_wandb
from orchestrator.run.refresh import Refreshed
from orchestrator.run.stages import Updated
from orchestrator.run.tables import example_rows, front_rows
from rewards.metrics import STEP_METRICS, describe, evaluation_figures
from rewards.normalize import Normalizer

if TYPE_CHECKING:
    from orchestrator.config import Recipe


Draw = Callable[[Path], Mapping[str, Path]]
"""Of a run directory: name -> PNG of each figure."""


class Recorder:
    """One object per optimizer step to disk, console, Ray's metrics and wandb.

    Use as a context manager. `stage(name)` times a part of the current step; `step(...)` closes it.
    `records` are the lines of metrics.jsonl so far, where a run goes on.
    """

    def __init__(
        self,
        recipe: "Recipe",
        run_dir: Path,
        normalizer: Normalizer,
        *,
        policy_version: int = 0,
        records: Sequence[Mapping[str, Any]] = (),
        say: Callable[[str], None] = TELL,
    ) -> None:
        self.recipe = recipe
        self.run_dir = run_dir
        self.normalizer = normalizer
        self.policy_version = policy_version
        self.say = say
        self._first_step = len(records)
        self._stage_seconds: dict[str, float] = {}
        self._step_started = time.monotonic()
        self._missing = 0
        self._refreshed: Refreshed | None = None
        self._watch = Watch(recipe.health)
        self._likely_tokens = LikelyTokens(recipe.health, records)
        self._monitor = Monitor(run_dir.name)

    def __enter__(self) -> "Recorder":
        self._metrics_file = (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._samples_file = (self.run_dir / "samples.jsonl").open("a", encoding="utf-8")
        self._wandb = WandbLog(partial(start_wandb, self.recipe, self.run_dir), self.say)
        self._started = self._step_started = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.say(self._trained(self.recipe.loop.steps))
        self._monitor.close()
        self._metrics_file.close()
        self._samples_file.close()
        self._wandb.finish(exit_code=0 if exc_info[0] is None else 1)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._stage_seconds[name] = self._stage_seconds.get(name, 0.0) + time.monotonic() - started

    def step(
        self,
        step: int,
        policy_version: int,
        scored: ScoredBatch,
        statistics: PairStatistics,
        updated: Updated,
        staleness: int,
    ) -> None:
        metrics = step_metrics(
            step, policy_version, scored, statistics, updated, staleness, objectives=self.recipe.objective_names
        )
        problems = find_problems(scored, metrics["logratio_mean"], self.recipe.health, self.recipe.objective_names)
        problems += self._likely_tokens.problems(updated.probed)
        metrics["problems"] = problems
        if self._refreshed is not None:
            metrics |= _refresh_metrics(self._refreshed, metrics["generated_tokens"])
            self._refreshed = None
        metrics["weighted_reward"] = self._weighted_reward(scored)
        self.policy_version = policy_version
        now = time.monotonic()
        seconds = {"step": now - self._step_started, **scored.seconds, "learn": 0.0, "sync": 0.0, **self._stage_seconds}
        metrics |= {f"seconds/{name}": value for name, value in seconds.items()}
        self._step_started, self._stage_seconds = now, {}
        self._missing += statistics.dropped
        self._write(self._metrics_file, metrics)
        for record in _samples(self.recipe, scored, policy_version):
            self._write(self._samples_file, record)
        told = metrics | {"problems": len(problems)}
        figures = {key: value for key, value in told.items() if isinstance(value, int | float)}
        self._wandb.log(figures, step=step)
        self._monitor.step(figures)
        self._show(metrics)
        for line in self._watch.step(step, problems, probed=updated.probed is not None):
            self.say(f"warning: {line}")

    def refreshed(self, found: Refreshed) -> None:
        """Judges were fitted further; what it cost is counted in the next step."""
        self.normalizer = found.normalizer
        self._refreshed = found

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Append one evaluation to RUN/evaluations.jsonl, and tell its figures."""
        with (self.run_dir / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            self._write(file, record)
        figures = evaluation_figures(record, record["objectives"])
        self._monitor.evaluation(figures)
        self._wandb.log({f"evaluation/{key}": value for key, value in figures.items()})
        if self._wandb.is_on:
            self._wandb.log_tables({"front": front_rows(record), "examples": example_rows(record)})

    def figures(self, draw: Draw) -> None:
        """To wandb, where that is wanted."""
        if self._wandb.is_on:
            self._wandb.log_images(draw(self.run_dir))

    def hint(self) -> str:
        return (
            f"{self._missing} prompts so far had a missing or non-finite score: look at RUN/samples.jsonl and score "
            f"one of its responses by hand with each of {', '.join(self.recipe.objective_names)}"
        )

    def _write(self, file: Any, record: Mapping[str, Any]) -> None:
        file.write(json_line(record))
        file.flush()

    def _weighted_reward(self, scored: ScoredBatch) -> float:
        """The training-time view of MIP."""
        preference = np.array([rollout.request.preference for rollout in scored.rollouts])
        return _nanmean(np.einsum("bk,bjk->bj", preference, self.normalizer.apply(scored.scores)))

    def _show(self, metrics: Mapping[str, Any]) -> None:
        self.say(step_line(metrics, self.recipe.loop.steps))
        self.say(self._trained(metrics["step"] + 1))

    def _trained(self, step: int) -> Progress:
        steps, first = self.recipe.loop.steps, self._first_step
        return how_far("training", step, steps, "steps", started=self._started, first=first)


def step_line(metrics: Mapping[str, Any], steps: int) -> str:
    """What a person is told of a step, in a hundred columns: metrics.jsonl has the rest."""
    reward, identified = describe("weighted_reward"), describe("identification_accuracy")
    took, sample, learn = (metrics[f"seconds/{name}"] for name in ("step", "generate", "learn"))
    parts = (
        f"step {metrics['step'] + 1:{len(str(steps))}d}/{steps}",
        f"loss {'skip' if metrics['loss'] is None else format(metrics['loss'], '.3f'):>5}",
        f"{reward.short} {reward.show(metrics['weighted_reward'], '+')}",
        f"{identified.short} {identified.show(metrics['identification_accuracy'])}",
        f"{metrics['generated_tokens'] / max(took, 1e-9):4.0f} tok/s",
        f"{_brief(took)} s (sample {_brief(sample)}, learn {_brief(learn)})",
    )
    return "  ".join(parts)


def _brief(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def training_totals(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all steps of a run: seconds (evaluations on the way included), generated tokens, idle share of the learner."""
    seconds = sum(step["seconds/step"] for step in metrics)
    idle = sum(step.get("seconds/idle_learner", 0.0) for step in metrics)
    return {
        "seconds": seconds,
        "generated_tokens": sum(step["generated_tokens"] for step in metrics),
        "labels": sum(step.get("labels", 0) for step in metrics),
        "idle_learner_share": idle / seconds if seconds else 0.0,
    }


def step_metrics(
    step: int,
    policy_version: int,
    scored: ScoredBatch,
    statistics: PairStatistics,
    updated: Updated,
    staleness: int,
    *,
    objectives: tuple[str, ...],
) -> dict[str, Any]:
    """The metrics.jsonl record without its timings; null is what the step did not measure, all of a skipped update."""
    lengths = [len(response.token_ids) for rollout in scored.rollouts for response in rollout.responses]
    finished = [response.finish_reason == "stop" for rollout in scored.rollouts for response in rollout.responses]
    report, sync = updated.report, updated.sync
    metrics: dict[str, Any] = {
        **{metric.key: None for metric in STEP_METRICS if not metric.tag},
        **(report.metrics if report else {}),
        "step": step,
        "policy_version": policy_version,
        "pair_conflict_rate": statistics.conflict_rate,
        "pair_tie_rate": statistics.tie_rate,
        "response_length": float(np.mean(lengths)),
        "finished_rate": float(np.mean(finished)),
        "staleness_max": staleness,
        "prompts": len(scored.rollouts),
        "prompts_dropped": statistics.dropped,
        "generated_tokens": scored.generated_tokens,
        "learner_tokens": report.learner_tokens if report else 0,
        "sync_bytes": sync.manifest.total_bytes if sync else 0,
        "labels": 0,
        **(asdict(updated.probed) if updated.probed else {}),
    }
    for k, name in enumerate(objectives):
        metrics[f"judge_accuracy/{name}"] = None
        metrics[f"reward_mean/{name}"] = _nanmean(scored.scores[..., k])
        metrics[f"reward_std/{name}"] = (
            float(np.nanstd(scored.scores[..., k])) if np.isfinite(scored.scores[..., k]).any() else None
        )
    return metrics


def _refresh_metrics(found: Refreshed, generated_tokens: int) -> dict[str, Any]:
    accuracy = {f"judge_accuracy/{name}": share for name, share in found.accuracy.items()}
    return {"labels": found.labels, "generated_tokens": generated_tokens + found.generated_tokens, **accuracy}


def _nanmean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _samples(recipe: "Recipe", scored: ScoredBatch, policy_version: int) -> Iterator[dict[str, Any]]:
    for index in range(min(recipe.telemetry.samples_per_step, len(scored.rollouts))):
        rollout = scored.rollouts[index]
        yield {
            "step": scored.batch.step,
            "prompt": rollout.request.prompt.plain,
            "preference_pos": list(rollout.request.preference),
            "preference_neg": scored.batch.preference_neg[index].tolist(),
            "responses": [response.text for response in rollout.responses],
            "finish_reasons": [response.finish_reason for response in rollout.responses],
            "scores": scored.scores[index].tolist(),
            "policy_version": rollout.min_policy_version,
            "updated_to": policy_version,
        }
