"""Training a method of several policies: one ordinary run for each part, then their merges on the grid."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actors.reward import Judge
from actors.types import GenerationRequest, Rollout
from learner.methods import Merger, make_method
from learner.types import SyncReport
from orchestrator.cluster import connection
from orchestrator.cluster.crew import start_actors
from orchestrator.cluster.failures import Failures
from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.files import json_line, read_lines
from orchestrator.inputs import Inputs
from orchestrator.progress import TELL
from orchestrator.recipes import override
from orchestrator.run.batching import Renders
from orchestrator.run.evaluate import Evaluator
from orchestrator.run.record import record_run
from orchestrator.run.resuming import check_goes_on
from orchestrator.run.rundir import RunDir
from orchestrator.run.sampling import Arrived, Sampling, Scored
from orchestrator.run.stopping import StopFlag
from orchestrator.run.telemetry import training_totals
from orchestrator.run.train import train
from orchestrator.run.wiring import join_fleet, join_sampler
from rewards.environment import local_folder
from rewards.prompts import Prompt

if TYPE_CHECKING:
    from learner.senders import WeightSender

Say = Callable[[str], None]
PART_EVALUATION = (
    "evaluate.prompts=8",
    "evaluate.samples=1",
    "evaluate.every=0",
    "evaluate.identification_responses=0",
    "evaluate.information_responses=0",
)
"""A part's own evaluations only show that it learns; the merges are what is measured."""


def train_parts(recipe: Recipe, run_path: Path, *, resume: bool = False, say: Say = TELL) -> int:
    """Run a recipe whose method merges; returns the exit code, as `orchestrator.run.train.train` does.

    RUN/experts/ holds the parts' runs, RUN itself what the merges came to. There is no RUN/policy: there is a policy
    for each w. Finished parts are kept and a stopped one goes on from its checkpoint.
    """
    if recipe.rollout.num_gpus:
        raise BadInput(
            f"method: {recipe.method.type} evaluates its averages on CPU engines only, got rollout.num_gpus = "
            f"{recipe.rollout.num_gpus:g}"
        )

    parts = {
        objective: (part, RunDir(part_path(RunDir(run_path), objective)))
        for objective, part in zip(recipe.objective_names, part_recipes(recipe), strict=True)
    }
    begun = {objective for objective, (_, part_dir) in parts.items() if part_dir.holds_run}
    for objective in begun if resume else ():
        check_goes_on(parts[objective][1], parts[objective][0])

    def work(run_dir: RunDir, inputs: Inputs, stop: StopFlag) -> int:
        for k, (objective, (part, part_dir)) in enumerate(parts.items(), start=1):
            say(f"expert {objective} ({k}/{recipe.num_objectives})")
            code = train(part, part_dir.path, resume=resume and objective in begun, say=say)
            if code:
                return code
        _collect_metrics(recipe, run_dir)
        failures = Failures(recipe.cluster, run_dir.path, say)
        return failures.try_again(lambda: _evaluate(recipe, run_dir, inputs, failures, say))

    return record_run(recipe, run_path, work, resume=resume, say=say)


def part_path(run_dir: RunDir, objective: str) -> Path:
    return run_dir.path / "experts" / f"{run_dir.path.name}-{objective}"  # its actors are named after the folder


def part_recipes(recipe: Recipe) -> list[Recipe]:
    """The ordinary runs that train the parts, one for each objective."""
    method = make_method(recipe.method)
    assert isinstance(method, Merger)
    parts = method.parts(recipe.num_objectives, recipe.loop.steps)
    return [override(recipe, [*part, *PART_EVALUATION, *_own_annotator(recipe, k)]) for k, part in enumerate(parts)]


def _own_annotator(recipe: Recipe, k: int) -> list[str]:
    """Of an expert: what others are annotated by is nothing to it."""
    if recipe.refresh is None:
        return []
    others = [f"objectives.{j}.annotator=null" for j in range(recipe.num_objectives) if j != k]
    return others if recipe.objectives[k].annotator is not None else [*others, "refresh=null"]


def _collect_metrics(recipe: Recipe, run_dir: RunDir) -> None:
    """The parts' metrics one after another, with the step counted on, and their totals."""
    with (run_dir.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        step = 0
        for objective in recipe.objective_names:
            path = part_path(run_dir, objective)
            for record in read_lines(path / "metrics.jsonl"):
                file.write(json_line({**record, "step": step, "expert": objective}))
                step += 1
    run_dir.describe(training=training_totals(read_lines(run_dir.path / "metrics.jsonl")))


def _evaluate(recipe: Recipe, run_dir: RunDir, inputs: Inputs, failures: Failures, say: Say) -> int:
    """The starting policy, then the merges of the grid, under the normaliser that the parts' runs measured."""
    from learner.senders import HostSender
    from learner.soup import SoupSource

    parts = [part_path(run_dir, objective) for objective in recipe.objective_names]
    normalizers = RunDir.open(parts[0]).load_normalizers()
    run_dir.save_normalizers(normalizers)
    (run_dir.path / "evaluations.jsonl").unlink(missing_ok=True)
    failures.step = recipe.loop.steps
    merger = make_method(recipe.method)
    assert isinstance(merger, Merger)
    # The start is one more part, of weight 0 in every merge: the KL is measured against it.
    start = local_folder(recipe.policy.model)
    source = SoupSource(
        [*(path / "policy" for path in parts), *filter(None, [start])], bucket_bytes=recipe.learner.bucket_bytes
    )
    with (
        connection.connect(recipe, check=not failures.count),
        start_actors(recipe, run_dir.path.name, trains=False) as actors,
    ):
        # What an engine loads by itself is the starting policy; it must not be brought back with a merge's weights.
        first = join_sampler(recipe, join_fleet(recipe, actors, failures), actors, failures)
        sender = HostSender(source, rank=0, timeout_s=recipe.learner.sync_timeout_s)
        fleet = join_fleet(recipe, actors, failures, connect=sender.connect, push=partial(_push, sender))
        renderer = RememberingRenderer(inputs.renderer)
        merged = SoupSampler(join_sampler(recipe, fleet, actors, failures), source, fleet, renderer, merger)
        evaluator = partial(Evaluator, recipe, prompts=inputs.heldout, normalizers=normalizers, say=say)
        of_start = evaluator(first, inputs.renderer, policy_and_start=lambda *asked: (first.logprobs(*asked),) * 2)
        of_merges = evaluator(merged, renderer, policy_and_start=merged.policy_and_start if start else None)
        for step, evaluate in ((0, of_start), (recipe.loop.steps, of_merges)):
            say(f"evaluating {'the merges' if step else 'the starting policy'} on the preference grid ...")
            with (run_dir.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
                file.write(json_line(evaluate(step, 0)))
    return 0


def _push(sender: "WeightSender", policy_version: int) -> None:
    sender.send(policy_version)


class RememberingRenderer:
    """A renderer that knows afterwards which w a conditioned prompt was made from."""

    def __init__(self, renderer: Renders) -> None:
        self.renderer = renderer
        self.preference_of: dict[tuple[int, ...], tuple[float, ...]] = {}

    def token_ids(self, prompt: Prompt, preference: Sequence[float]) -> Sequence[int]:
        ids = self.renderer.token_ids(prompt, preference)
        self.preference_of[tuple(ids)] = tuple(float(weight) for weight in preference)
        return ids


class Mixture(Protocol):
    """`learner.soup.SoupSource`, as far as asking goes."""

    def mix(self, weights: Sequence[float]) -> None: ...

    def __len__(self) -> int: ...


class Broadcast(Protocol):
    """`orchestrator.cluster.fleet.Fleet`, as far as asking goes."""

    def push_weights(self, policy_version: int) -> SyncReport | None: ...


class SoupSampler:
    """`Sampling` in which every w is answered by its own average: the engines' weights follow the requests' w.

    Args:
        source, fleet: the parts (then, perhaps, the start) and the way into the engines.
        renderer: the one that makes every prompt asked here.
        merger: tells the parts' coefficients for a w.
    """

    def __init__(
        self,
        sampler: Sampling,
        source: Mixture,
        fleet: Broadcast,
        renderer: RememberingRenderer,
        merger: Merger,
    ) -> None:
        self.sampler = sampler
        self.source = source
        self.fleet = fleet
        self.renderer = renderer
        self.merger = merger
        self._version = 0

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        policy_version: int,
        *,
        judges: Sequence[Judge] = ("reward",),
        temperature: float | None = None,
        arrived: Arrived | None = None,
    ) -> Scored:
        rollouts: dict[int, Rollout] = {}
        scores: dict[Judge, dict[int, np.ndarray]] = {judge: {} for judge in judges}
        seconds: dict[str, float] = defaultdict(float)
        for preference, rows in _groups([request.preference for request in requests]).items():
            version = self._pour(preference)
            part = self.sampler.sample(
                [requests[row] for row in rows], version, judges=judges, temperature=temperature, arrived=arrived
            )
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

    def policy_and_start(
        self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities [N] under each prompt's average, and under the starting policy, the source's last part."""
        averaged = self.logprobs(prompt_ids, response_ids)
        self._send([*[0.0] * (len(self.source) - 1), 1.0])
        return averaged, self.sampler.logprobs(prompt_ids, response_ids)

    def _pour(self, preference: Sequence[float]) -> int:
        coefficients = self.merger.coefficients(list(preference))
        return self._send([*coefficients, *[0.0] * (len(self.source) - len(coefficients))])

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
