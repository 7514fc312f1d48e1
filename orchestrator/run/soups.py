"""Training a method of several policies: one ordinary run for each part, then their merges on the grid."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from learner.methods import Merger, make_method
from orchestrator.cluster import connection
from orchestrator.cluster.crew import start_actors
from orchestrator.cluster.failures import Failures
from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.files import Record, json_line, read_lines, write_lines
from orchestrator.inputs import Inputs
from orchestrator.progress import TELL, waiting
from orchestrator.recipes import override
from orchestrator.run.evaluate import Evaluator
from orchestrator.run.merges import Trial, save_merges, try_merges
from orchestrator.run.record import record_run
from orchestrator.run.resuming import check_goes_on
from orchestrator.run.rundir import RunDir
from orchestrator.run.soup_sampler import RememberingRenderer, SoupSampler
from orchestrator.run.stopping import StopFlag
from orchestrator.run.telemetry import training_totals
from orchestrator.run.train import train
from orchestrator.run.wiring import join_fleet, join_sampler
from rewards.environment import local_folder

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

    searches = make_method(recipe.method)
    assert isinstance(searches, Merger)
    if searches.candidates(recipe.num_objectives) and local_folder(recipe.policy.model) is None:
        raise BadInput(
            f"policy.model: must be a folder where merges need the start as well (method {recipe.method.type}), got "
            f"{recipe.policy.model!r}"
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
        engines = join_sampler(recipe, fleet, actors, failures)
        merged = SoupSampler(engines, source, fleet, renderer, partial(merger.coefficients, tried=None))
        evaluator = partial(Evaluator, recipe, prompts=inputs.heldout, normalizers=normalizers, say=say)
        say("evaluating the starting policy on the preference grid ...")
        of_start = evaluator(first, inputs.renderer, policy_and_start=lambda *asked: (first.logprobs(*asked),) * 2)
        _record(run_dir, of_start(0, 0))
        if candidates := merger.candidates(recipe.num_objectives):
            assert start is not None
            with waiting(say, f"trying {len(candidates)} merges on training prompts ..."):
                trial = try_merges(recipe, candidates, merged, inputs, normalizers["reward"])
            save_merges(run_dir.path, recipe.method, start, trial.tried)
            _count_trial(run_dir, trial)
            merged.coefficients = partial(merger.coefficients, tried=trial.tried)
        say("evaluating the merges on the preference grid ...")
        of_merges = evaluator(merged, renderer, policy_and_start=merged.policy_and_start if start else None)
        _record(run_dir, of_merges(recipe.loop.steps, 0))
    return 0


def _record(run_dir: RunDir, evaluation: Record) -> None:
    with (run_dir.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json_line(evaluation))


def _count_trial(run_dir: RunDir, trial: Trial) -> None:
    """What it cost, in the last step's line, where every total is counted from."""
    file = run_dir.path / "metrics.jsonl"
    *before, last = read_lines(file)
    last["generated_tokens"] += trial.generated_tokens
    last["seconds/step"] += trial.seconds
    write_lines(file, [*before, last])
    run_dir.describe(training=training_totals([*before, last]))


def _push(sender: "WeightSender", policy_version: int) -> None:
    sender.send(policy_version)
