"""A run's work between the first and the last word of its run.json: what is checked before, and how it ended."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import connection
from orchestrator.errors import BadInput
from orchestrator.inputs import Inputs, check_inputs, check_unbuilt
from orchestrator.run.resuming import check_goes_on
from orchestrator.run.rundir import RunDir
from orchestrator.run.stopping import StopFlag

if TYPE_CHECKING:
    from orchestrator.config import Recipe


def record_run(
    recipe: "Recipe",
    run_path: Path,
    work: Callable[[RunDir, Inputs, StopFlag], int],
    *,
    resume: bool,
    say: Callable[[str], None],
) -> int:
    """Check the inputs, do the work between the first and the last word of run.json.

    Returns its exit code. The work of a finished run is not done again. A cluster that cannot hold the run, and a
    changed recipe that it cannot go on under, are told before anything is built or written.
    """
    changes = check_goes_on(RunDir.open(run_path), recipe) if resume else []
    if not _is_done(RunDir(run_path), recipe):
        connection.check(recipe)
    with RunDir.claim(run_path, recipe, resume=resume) as run_dir:
        if _is_done(run_dir, recipe):
            say(f"{run_path}: finished already")
        else:
            for line in changes:
                say(line)
            if recipe.is_unbuilt:
                check_unbuilt(recipe)
            build_assets(recipe, say)
            inputs = check_inputs(recipe)
            for remark in inputs.remarks:
                say(remark)
            run_dir.write_recipe(recipe)
            code = _record(recipe, run_dir, partial(work, run_dir, inputs), say)
            if code:
                return code
        say(f"policy  {run_dir.policy if run_dir.policy.exists() else run_dir.path / 'experts'}")
        return 0


def _is_done(run_dir: RunDir, recipe: "Recipe") -> bool:
    return run_dir.status == "finished" and recipe.loop.steps <= run_dir.recipe().loop.steps


def _record(recipe: "Recipe", run_dir: RunDir, work: Callable[[StopFlag], int], say: Callable[[str], None]) -> int:
    started, stop = time.monotonic(), StopFlag()
    try:
        with stop.installed():
            run_dir.start(recipe, resumed=run_dir.status is not None)
            code = work(stop)
    except KeyboardInterrupt:
        run_dir.finish("stopped", seconds=time.monotonic() - started)
        done = run_dir.checkpointed_steps
        say(f"stopped; given again, the command goes on from {f'step {done}' if done else 'the start'}")
        return stop.exit_code
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:2000]
        with contextlib.suppress(OSError):  # of a disk that is full; the first error is the one to tell
            run_dir.finish("failed", error=said, seconds=time.monotonic() - started)
        raise
    run_dir.finish("finished" if code == 0 else "stopped", seconds=time.monotonic() - started)
    return code


def build_assets(recipe: "Recipe", say: Callable[[str], None]) -> None:
    """Build what the recipe says it can build; cached builds return at once."""
    if recipe.assets is None:
        return
    directory, build = Path(recipe.assets.directory), recipe.assets.build
    if build == "miniature":
        from orchestrator.tasks.miniature.build import build_miniature

        build_miniature(directory, objectives=recipe.objective_names, seed=recipe.seed, progress=say)
    elif build == "dialogues":
        from orchestrator.tasks.dialogues.build import build_dialogues

        build_dialogues(directory, recipe, progress=say)
    elif build == "smollm2":
        from orchestrator.tasks.smollm2.start import build_smollm2

        build_smollm2(directory, recipe, progress=say)
    elif build == "taught":
        from orchestrator.tasks.teaching.taught import build_taught

        build_taught(directory, recipe, progress=say)
    elif not directory.is_dir():
        raise BadInput(
            f"assets.directory: must be there (the recipe does not build it), got {recipe.assets.directory!r}"
        )
