"""`mi-epo evaluate`: the preference grid for a trained run or any policy folder, outside training."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import connection
from orchestrator.cluster.crew import start_actors
from orchestrator.cluster.failures import Failures
from orchestrator.errors import BadInput
from orchestrator.files import json_line
from orchestrator.inputs import check_inputs, check_policy, check_renderer
from orchestrator.progress import TELL
from orchestrator.run.evaluate import Evaluator, measure_normalizers
from orchestrator.run.record import build_assets
from orchestrator.run.rundir import RunDir
from orchestrator.run.sampling import Sampler
from orchestrator.run.steering import FILE_NAME, find_policy, load_conditioning
from orchestrator.run.wiring import join_fleet, join_sampler

if TYPE_CHECKING:
    from orchestrator.config import Recipe


def evaluate(target: Path, recipe: "Recipe | None", output: Path | None, *, say: Callable[[str], None] = TELL) -> Path:
    """Evaluate `target` (a run directory or a policy folder) into a run directory of its own; returns that.

    A run brings its recipe and its frozen normaliser; a bare policy folder needs a recipe, and the normaliser is then
    measured on the recipe's starting policy first.
    """
    is_run = (target / "config.yaml").is_file()
    if recipe is None:
        if not is_run:
            raise BadInput(f"{target}: is not a run directory (no config.yaml), so --recipe is needed")
        recipe = RunDir.open(target).recipe()
        outside = recipe.reaches_outside()
        if outside:
            config = target / "config.yaml"
            raise BadInput(f"{config}: runs or asks {outside[0]!r}; if you trust it, say so by --recipe {config}")
    policy = find_policy(target)
    if not (policy / "config.json").is_file():
        raise BadInput(f"{target}: holds no policy (no config.json in it or in its policy/ folder)")
    conditioning = load_conditioning(policy) if (policy / FILE_NAME).is_file() else None
    trained_for = conditioning.objectives if conditioning else recipe.objective_names
    if trained_for != recipe.objective_names:
        raise BadInput(
            f"{policy}: is a policy for the objectives {list(trained_for)}, "
            f"the recipe has {list(recipe.objective_names)}"
        )
    if problems := check_policy(str(policy.resolve()), "policy", max_model_len=recipe.rollout.max_model_len):
        raise BadInput("\n".join(problems))
    connection.check(recipe)
    build_assets(recipe, say)
    inputs = check_inputs(recipe)
    for remark in inputs.remarks:
        say(remark)
    renderer = conditioning.renderer(inputs.renderer.tokenizer) if conditioning else inputs.renderer
    check_renderer(renderer, inputs.heldout, where=f"{policy / FILE_NAME}: preferences.conditioning")
    normalizers = RunDir.open(target).load_normalizers() if is_run else None
    run_dir = RunDir.create(output or _free_folder(target), recipe)
    run_dir.start(recipe)
    failures = Failures(recipe.cluster, run_dir.path, say)
    with connection.connect(recipe):
        if normalizers is None:
            say(f"measuring the normaliser on {recipe.policy.model} ...")
            with _sampler(recipe, recipe.policy.model, run_dir, failures) as sampler:
                normalizers = measure_normalizers(recipe, sampler, inputs.renderer, inputs.train, 0)
        run_dir.save_normalizers(normalizers)
        say(f"evaluating {policy} on the preference grid ...")
        with _sampler(recipe, str(policy), run_dir, failures) as sampler:
            record = Evaluator(recipe, sampler, renderer, inputs.heldout, normalizers, say=say)(0, 0)
    line = json_line(record)
    for name in ("evaluation.json", "evaluations.jsonl"):
        (run_dir.path / name).write_text(line, encoding="utf-8")
    run_dir.finish("finished")
    say(f"evaluation  {run_dir.path / 'evaluation.json'}")
    return run_dir.path


@contextlib.contextmanager
def _sampler(recipe: "Recipe", model: str, run_dir: RunDir, failures: Failures) -> Iterator[Sampler]:
    """Engines that serve `model`, and the judges, for as long as the block lasts."""
    with start_actors(recipe, run_dir.path.name, served=model, trains=False) as actors:
        yield join_sampler(recipe, join_fleet(recipe, actors, failures), actors, failures)


def _free_folder(target: Path) -> Path:
    """TARGET/evaluation, or the first free evaluation-N: an evaluation is never overwritten."""
    candidates = (target / ("evaluation" if number == 1 else f"evaluation-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
