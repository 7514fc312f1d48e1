"""Training a rewarded soup: one ordinary run for each objective, then the averages of their policies on the grid."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.reward import Judge
from actors.types import GenerationRequest
from orchestrator.cluster import connection
from orchestrator.cluster.failures import Failures
from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.lines import json_line, read_lines
from orchestrator.plan import Inputs, is_local
from orchestrator.run.batching import Renders
from orchestrator.run.evaluate import Evaluator
from orchestrator.run.rundir import RunDir
from orchestrator.run.sampling import Sampling, Scored
from orchestrator.run.telemetry import training_totals
from orchestrator.run.train import record_run, train
from orchestrator.run.wiring import make_fleet, make_sampler

Say = Callable[[str], None]
EXPERT_EVALUATION = {"prompts": 8, "samples": 1, "every": 0, "identification_responses": 0, "information_responses": 0}
"""An expert's own evaluations only show that it learns; the soup is what is measured."""


def train_soup(recipe: Recipe, run_path: Path, *, resume: bool = False, say: Say = print) -> int:
    """Run the recipe with method `rewarded-soups`; returns the exit code, as `orchestrator.run.train.train` does.

    RUN/experts/ holds the experts' runs, RUN itself what the soup came to. There is no RUN/policy: a soup is a policy
    for each w. Finished experts are kept and a stopped one goes on from its checkpoint.
    """
    if recipe.rollout.num_gpus:
        raise BadInput(
            f"method: rewarded-soups evaluates its averages on CPU engines only, got rollout.num_gpus = "
            f"{recipe.rollout.num_gpus:g}"
        )

    def work(run_dir: RunDir, inputs: Inputs) -> int:
        code = _train_experts(recipe, run_dir, say)
        if code == 0:
            _collect_metrics(recipe, run_dir)
            failures = Failures(recipe.cluster, run_dir.path, say)
            return failures.try_again(lambda: _evaluate(recipe, run_dir, inputs, failures, say))
        return code

    return record_run(recipe, run_path, work, resume=resume, say=say)


def expert_path(run_dir: RunDir, objective: str) -> Path:
    return run_dir.path / "experts" / f"{run_dir.path.name}-{objective}"  # its actors are named after the folder


def expert_recipe(recipe: Recipe, k: int) -> Recipe:
    """The ordinary run that trains the expert of objective k: its one-hot w throughout, its share of the steps."""
    tree = recipe.model_dump(mode="json")
    tree["method"] = "mo-odpo"
    tree["preferences"]["fixed"] = [float(j == k) for j in range(recipe.num_objectives)]
    tree["loop"]["steps"] = recipe.loop.steps // recipe.num_objectives
    tree["evaluate"] |= EXPERT_EVALUATION
    return Recipe.model_validate(tree)


def _train_experts(recipe: Recipe, run_dir: RunDir, say: Say) -> int:
    for k, objective in enumerate(recipe.objective_names):
        say(f"expert {objective} ({k + 1}/{recipe.num_objectives})")
        code = train(expert_recipe(recipe, k), expert_path(run_dir, objective), say=say)
        if code:
            return code
    return 0


def _collect_metrics(recipe: Recipe, run_dir: RunDir) -> None:
    """The experts' metrics one after another, with the step counted on, and their totals."""
    with (run_dir.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        step = 0
        for objective in recipe.objective_names:
            path = expert_path(run_dir, objective)
            for record in read_lines(path / "metrics.jsonl"):
                file.write(json_line({**record, "step": step, "expert": objective}))
                step += 1
    run_dir.describe(training=training_totals(read_lines(run_dir.path / "metrics.jsonl")))


def _evaluate(recipe: Recipe, run_dir: RunDir, inputs: Inputs, failures: Failures, say: Say) -> int:
    """The starting policy, then the soups of the grid, under the normaliser that the experts' runs measured."""
    from learner.senders import HostSender
    from learner.soup import SoupSource

    experts = [expert_path(run_dir, objective) for objective in recipe.objective_names]
    normalizers = RunDir.open(experts[0]).load_normalizers()
    run_dir.save_normalizers(normalizers)
    (run_dir.path / "evaluations.jsonl").unlink(missing_ok=True)
    failures.step = recipe.loop.steps
    with connection.connect(recipe, check=not failures.count):
        from actors import reward, rollout

        name = run_dir.path.name
        rewards = reward.start_rewards(recipe.objectives, run_name=name)
        engines = []
        try:
            engines = rollout.start_rollouts(recipe.rollout, model=recipe.policy.model, run_name=name, seed=recipe.seed)
            folders = [path / "policy" for path in experts]
            # The start is one more part, of weight 0 in every soup: the KL is measured against it.
            has_start = is_local(recipe.policy.model)
            source = SoupSource(
                [*folders, *([Path(recipe.policy.model).expanduser()] if has_start else [])],
                bucket_bytes=recipe.learner.bucket_bytes,
            )
            sender = HostSender(source, rank=0, timeout_s=recipe.learner.sync_timeout_s)
            fleet = make_fleet(recipe, engines, failures, connect=sender.connect, push=sender.send)
            plain = make_sampler(recipe, fleet, rewards, failures)
            # What an engine loads by itself is the starting policy; it must not be brought back with a soup's weights.
            first = make_sampler(recipe, make_fleet(recipe, engines, failures), rewards, failures)
            renderer = RememberingRenderer(inputs.renderer)
            soups = SoupSampler(plain, source, fleet, renderer, num_experts=len(experts))
            start = Evaluator(
                recipe, first, inputs.renderer, inputs.heldout, normalizers, lambda p, r: _one_sum(first.logprobs(p, r))
            )
            soup = Evaluator(
                recipe,
                soups,
                renderer,
                inputs.heldout,
                normalizers,
                (lambda p, r: _one_sum(soups.start_logprobs(p, r))) if has_start else None,
            )
            for step, evaluator in ((0, start), (recipe.loop.steps, soup)):
                say(f"evaluating {'the starting policy' if step == 0 else 'the soups'} on the preference grid ...")
                with (run_dir.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json_line(evaluator(step, 0)))
        finally:
            with contextlib.suppress(Exception):  # of a cluster that is gone; the first error is the one to tell
                rollout.stop(engines)
                reward.stop(rewards)
    return 0


def _one_sum(sums: np.ndarray) -> list[list[float]]:
    return [[float(value)] for value in sums]


class RememberingRenderer:
    """A renderer that knows afterwards which w a conditioned prompt was made from."""

    def __init__(self, renderer: Renders) -> None:
        self.renderer = renderer
        self.preference_of: dict[tuple[int, ...], tuple[float, ...]] = {}

    def token_ids(self, prompt: str, preference: Sequence[float]) -> Sequence[int]:
        ids = self.renderer.token_ids(prompt, preference)
        self.preference_of[tuple(ids)] = tuple(float(weight) for weight in preference)
        return ids


class Mixture(Protocol):
    """`learner.soup.SoupSource`, as far as asking goes."""

    def mix(self, weights: Sequence[float]) -> None: ...

    def __len__(self) -> int: ...


class Broadcast(Protocol):
    """`orchestrator.cluster.fleet.Fleet`, as far as asking goes."""

    def push_weights(self, policy_version: int) -> Any: ...


class SoupSampler:
    """`Sampling` in which every w is answered by its own average: the engines' weights follow the requests' w.

    Args:
        source, fleet: the experts (then, perhaps, the start) and the way into the engines.
        renderer: the one that makes every prompt asked here.
    """

    def __init__(
        self,
        sampler: Sampling,
        source: Mixture,
        fleet: Broadcast,
        renderer: RememberingRenderer,
        *,
        num_experts: int,
    ) -> None:
        self.sampler = sampler
        self.source = source
        self.fleet = fleet
        self.renderer = renderer
        self.num_experts = num_experts
        self._version = 0

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        policy_version: int,
        *,
        judges: Sequence[Judge] = ("reward",),
        temperature: float | None = None,
    ) -> Scored:
        rollouts: dict[int, Any] = {}
        scores: dict[Judge, dict[int, np.ndarray]] = {judge: {} for judge in judges}
        seconds: dict[str, float] = defaultdict(float)
        for preference, rows in _groups([request.preference for request in requests]).items():
            version = self._pour(preference)
            part = self.sampler.sample([requests[row] for row in rows], version, judges=judges, temperature=temperature)
            rollouts |= dict(zip(rows, part.rollouts, strict=True))
            for judge in judges:
                scores[judge] |= dict(zip(rows, part.scores[judge], strict=True))
            for stage, value in part.seconds.items():
                seconds[stage] += value
        order = range(len(requests))
        return Scored(
            rollouts=tuple(rollouts[row] for row in order),
            scores={judge: np.stack([scores[judge][row] for row in order]) for judge in judges},
            seconds=dict(seconds),
        )

    def logprobs(self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[N], each under the average of the w that its prompt was made from."""
        found = np.empty(len(prompt_ids))
        asked = [self.renderer.preference_of[tuple(ids)] for ids in prompt_ids]
        for preference, rows in _groups(asked).items():
            self._pour(preference)
            found[rows] = self.sampler.logprobs([prompt_ids[row] for row in rows], [response_ids[row] for row in rows])
        return found

    def start_logprobs(
        self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]
    ) -> np.ndarray:
        """[N] under the starting policy, the source's last part."""
        self._send([*[0.0] * self.num_experts, 1.0])
        return self.sampler.logprobs(prompt_ids, response_ids)

    def _pour(self, preference: Sequence[float]) -> int:
        return self._send([*preference, *[0.0] * (len(self.source) - self.num_experts)])

    def _send(self, weights: Sequence[float]) -> int:
        self.source.mix(weights)
        self._version += 1
        self.fleet.push_weights(self._version)
        return self._version


def _groups(preferences: Sequence[tuple[float, ...]]) -> dict[tuple[float, ...], list[int]]:
    """Preference vector -> the rows that carry it, in order of first appearance."""
    rows: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for row, preference in enumerate(preferences):
        rows[tuple(preference)].append(row)
    return dict(rows)
