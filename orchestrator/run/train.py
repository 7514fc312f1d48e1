"""A training run from recipe to policy: start the crew, evaluate, train, evaluate, export.

Components never know each other; `Run` wires them and `loop.train` drives them.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actors.reward import Judge
from learner.methods import METHODS
from learner.types import PoisonedUpdateError, sha256_of
from orchestrator.cluster.failures import Failures
from orchestrator.errors import RunFailed
from orchestrator.files import read_lines
from orchestrator.inputs import Inputs
from orchestrator.progress import TELL, waiting
from orchestrator.run import loop
from orchestrator.run.batching import Batcher, ScoredBatch
from orchestrator.run.evaluate import Evaluator, measure_normalizers
from orchestrator.run.health import nothing_learned
from orchestrator.run.in_flight import FILE_NAME as IN_FLIGHT
from orchestrator.run.in_flight import here_already, load_in_flight, save_in_flight
from orchestrator.run.probe import Probe, policy_and_start
from orchestrator.run.record import record_run
from orchestrator.run.refresh import Refresher
from orchestrator.run.rundir import LAYOUT, CheckpointMeta, RunDir
from orchestrator.run.stages import CrewLearner, CrewSampler, Pending, Pushes
from orchestrator.run.steering import asked_renderer, save_conditioning
from orchestrator.run.stopping import StopFlag
from orchestrator.run.telemetry import Draw, Recorder, training_totals
from orchestrator.run.wiring import Crew, Hire, hire_on_ray
from rewards.metrics import EVALUATION_METRICS, describe
from rewards.normalize import Normalizer

if TYPE_CHECKING:
    from orchestrator.config import Recipe


@dataclass(kw_only=True)
class Run:
    """The stages `loop.train` drives, as one object."""

    recipe: "Recipe"
    run_dir: RunDir
    batcher: Batcher
    sampler: CrewSampler
    learner: CrewLearner
    fleet: Pushes
    evaluator: Evaluator
    refresher: Refresher
    probe: Probe
    recorder: Recorder
    stop_requested: StopFlag = field(default_factory=StopFlag)

    def refresh_is_due(self, step: int) -> bool:
        return self.refresher.is_due(step)

    def refresh(self, step: int, policy_version: int, in_flight: Iterable[Pending]) -> Iterable[Pending]:
        """Returns what is in flight as the new judges score it."""
        with self.recorder.stage("refresh"):
            sampled = [pending.result() for pending in in_flight]
            found = self.refresher(step, policy_version)
            rescored = [here_already(self.refresher.rescored(batch)) for batch in sampled]
        self.batcher.normalizer = found.normalizer
        self.recorder.refreshed(found)
        return rescored

    def evaluate(self, step: int, policy_version: int) -> None:
        self.recorder.say(f"evaluating policy version {policy_version} on the preference grid ...")
        record = self.evaluator(step, policy_version)
        self.recorder.evaluation(record)
        told = [describe(key, table=EVALUATION_METRICS) for key in ("hypervolume", "mip", "crd", "seconds")]
        figures = "  ".join(f"{metric.label} {metric.show(metric.of(record))}" for metric in told)
        self.recorder.say(f"evaluation at step {step}: {figures} s")

    def checkpoint(self, next_step: int, policy_version: int, in_flight: Sequence[ScoredBatch]) -> None:
        recipe, partial = self.recipe, self.run_dir.path / "checkpoints" / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.learner.save_checkpoint(partial)
        save_in_flight(partial, in_flight)
        meta = CheckpointMeta(
            layout=LAYOUT,
            next_step=next_step,
            policy_version=policy_version,
            objectives=recipe.objective_names,
            policy_model=recipe.policy.model,
            method=recipe.method.type,
            in_flight_sha256=sha256_of(partial / IN_FLIGHT),
        )
        path = self.run_dir.publish_checkpoint(partial, meta, keep=recipe.loop.keep_checkpoints)
        self.recorder.say(f"checkpoint {path}")


def train(
    recipe: "Recipe",
    run_path: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = TELL,
    hire: Hire = hire_on_ray,
    draw: Draw | None = None,
) -> int:
    """Run the recipe; returns the exit code (0, or 128 + signal after a stop with a checkpoint).

    A run that the folder holds already goes on from its last checkpoint (`RunDir.claim`).

    Args:
        resume: also under a changed recipe, where it can (`resuming.check_goes_on`).
        hire: starts the crew.
        draw: makes the figures that go to wandb at the end.

    Raises:
        RunFailed: too much was lost, or nothing was learned.
    """

    def work(run_dir: RunDir, inputs: Inputs, stop: StopFlag) -> int:
        failures = Failures(recipe.cluster, run_dir.path, say)

        def attempt() -> int | None:
            if stop():
                say("stopped while something was lost: the last checkpoint stands")
                return stop.exit_code
            checkpoint = run_dir.latest_checkpoint(recipe, say)
            if checkpoint is not None:
                say(f"going on from {checkpoint[0]}")
            elif (run_dir.path / "metrics.jsonl").exists():
                say("no complete checkpoint: starting over")
            next_step = checkpoint[1].next_step if checkpoint else 0
            run_dir.rewind(next_step if checkpoint else -1)
            failures.step = next_step
            try:
                # Read before anything starts, so that what is damaged is told at once.
                resumed = checkpoint and Resumed.read(recipe, run_dir, inputs, *checkpoint)
                with hire(recipe, run_dir.path.name, failures, stop, say) as crew:
                    return _train(recipe, run_dir, inputs, resumed, crew, Person(stop=stop, say=say, draw=draw))
            except PoisonedUpdateError as error:
                skip_update(recipe, run_dir, error)
                say(f"{error}; going back to the last checkpoint, this update is left out")
                return None

        return failures.try_again(attempt)

    return record_run(recipe, run_path, work, resume=resume, say=say)


def skip_update(recipe: "Recipe", run_dir: RunDir, error: PoisonedUpdateError) -> None:
    """Have the update left out from now on. Raises: too many were already."""
    skipped = run_dir.skipped_updates
    if error.step in skipped:
        raise error
    if len(skipped) >= recipe.health.max_skipped_updates:
        raise RunFailed(
            f"{error}; {len(skipped)} updates were left out already "
            f"(health.max_skipped_updates = {recipe.health.max_skipped_updates})"
        ) from error
    run_dir.describe(skipped_updates=[*skipped, error.step])


def longest_step_s(recipe: "Recipe") -> float:
    """Most seconds of a step and its checkpoint: the deadlines of sampling (also of what is in flight), update,
    broadcast, saving and a refresh of the judges."""
    refresh_s = recipe.rollout.generate_timeout_s + 2 * recipe.refresh.timeout_s if recipe.refresh else 0.0
    step_s = 2 * recipe.rollout.generate_timeout_s + 2 * recipe.learner.step_timeout_s + recipe.learner.sync_timeout_s
    return step_s + refresh_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a run goes on from."""

    path: Path
    meta: CheckpointMeta
    normalizers: dict[Judge, Normalizer]
    in_flight: Sequence[Pending]

    @classmethod
    def read(cls, recipe: "Recipe", run_dir: RunDir, inputs: Inputs, path: Path, meta: CheckpointMeta) -> "Resumed":
        """Raises BadInput when a part of the checkpoint at `path` is damaged."""
        normalizers = run_dir.load_normalizers()
        batcher = Batcher(recipe, inputs.train, inputs.renderer, normalizers["reward"])
        in_flight = load_in_flight(path, batcher.requests)
        return cls(path=path, meta=meta, normalizers=normalizers, in_flight=in_flight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who runs it. Example: Person(stop=StopFlag(), say=print, draw=None)"""

    stop: StopFlag
    say: Callable[[str], None]
    draw: Draw | None
    """Makes the figures that go to wandb at the end."""


def _train(
    recipe: "Recipe",
    run_dir: RunDir,
    inputs: Inputs,
    resumed: Resumed | None,
    crew: Crew,
    person: Person,
) -> int:
    say, stop = person.say, person.stop
    renderer, first_step, policy_version = inputs.renderer, 0, 0
    for remark in crew.learner.remarks:
        say(remark)
    if resumed is not None:
        first_step, policy_version = resumed.meta.next_step, resumed.meta.policy_version
        crew.learner.load_checkpoint(resumed.path)
    crew.fleet.push_weights(policy_version)
    if resumed is not None:
        normalizers = resumed.normalizers
    else:
        with waiting(say, "sampling the starting policy, by whose scores every score is normalised ..."):
            normalizers = measure_normalizers(recipe, crew.sampler, renderer, inputs.train, policy_version)
        run_dir.save_normalizers(normalizers)
    asked = asked_renderer(METHODS[recipe.method.type].asks_for, renderer)
    refresher = Refresher(recipe, crew.sampler, asked, inputs.train, normalizers["reward"], run_dir, say=say)
    normalizer = refresher.restore(first_step)
    records = read_lines(run_dir.path / "metrics.jsonl")
    batcher = Batcher(recipe, inputs.train, renderer, normalizer, skipped=run_dir.skipped_updates, records=records)
    probe = Probe(
        recipe, crew.sampler, crew.learner.token_logprobs, crew.learner.top_tokens, batcher.requests(0).requests
    )
    mismatch = probe(policy_version).engine_mismatch
    say(f"engines and learner differ by {mismatch:.2g} nats a token on the same tokens")
    evaluator = Evaluator(
        recipe,
        crew.sampler,
        renderer,
        inputs.heldout,
        normalizers,
        asked=asked,
        policy_and_start=partial(policy_and_start, crew.learner.token_logprobs),
        say=say,
    )
    with Recorder(
        recipe,
        run_dir.path,
        normalizer,
        policy_version=policy_version,
        records=records,
        say=say,
    ) as recorder:
        run = Run(
            recipe=recipe,
            run_dir=run_dir,
            batcher=batcher,
            sampler=crew.sampler,
            learner=crew.learner,
            fleet=crew.fleet,
            evaluator=evaluator,
            refresher=refresher,
            probe=probe,
            recorder=recorder,
            stop_requested=stop,
        )
        if resumed is None:
            run.evaluate(0, policy_version)
        with stop.within_steps(longest_step_s(recipe)):
            done = loop.train(
                run,
                recipe.loop,
                first_step=first_step,
                policy_version=policy_version,
                evaluate_every=recipe.evaluate.every,
                restored=resumed.in_flight if resumed else (),
            )
        metrics = read_lines(run_dir.path / "metrics.jsonl")
        run_dir.describe(training=training_totals(metrics))
        if stop():
            saved = run_dir.checkpoint_path(done)
            say(f"stopped at step {done}, {f'checkpoint {saved}' if saved.exists() else 'nothing to resume from'}")
            return stop.exit_code
        if nothing := nothing_learned(metrics, run_dir.skipped_updates):
            raise RunFailed(nothing)
        if not run_dir.has_evaluation(done):
            run.evaluate(done, recorder.policy_version)
        crew.learner.save_policy(run_dir.policy)
        save_conditioning(run_dir.policy, recipe)
        if person.draw is not None:
            recorder.figures(person.draw)
    return 0
