"""Whether a run can go on under a changed recipe (`--resume`), found before anything of it is touched."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from learner.config import learning_rate
from learner.methods import Merger, make_method
from orchestrator.errors import BadInput
from orchestrator.run.rundir import RunDir

if TYPE_CHECKING:
    from orchestrator.config import Recipe

OPERATION = {
    *("num_cpus", "num_gpus", "replicas", "node_labels"),
    *("batch_size", "device", "url", "timeout_s", "retries", "token_env"),
}
"""Of an objective: where and how it is asked, not what it says."""
KEPT = (
    *("seed", "policy", "objectives", "preferences.conditioning", "preferences.decimals", "method.type"),
    *("learner.lora", "data.heldout", "data.prompt_field", "evaluate"),
)
"""What a run's weights, normaliser and evaluations were made by; under another value they would mean something else."""


def check_goes_on(run_dir: RunDir, recipe: "Recipe") -> list[str]:
    """What changes when the run in `run_dir` goes on under `recipe`, a line for each change that a person should know.

    Raises:
        BadInput: it cannot: a value that has to stay differs, fewer steps than were done, or a finished run whose last
            step left no checkpoint, from which going on would undo a part of it.
    """
    begun = run_dir.recipe()
    for key, old, new in _differences(_kept(begun), _kept(recipe)):
        raise BadInput(
            f"--resume: {key}: must stay {old!r}, as {run_dir.path} was begun, got {new!r}; another --run-dir takes it"
        )
    before, after = begun.loop.steps, recipe.loop.steps
    if isinstance(make_method(recipe.method), Merger):
        return []  # its parts are runs of their own, and asked themselves
    if run_dir.status == "finished" and after > before:
        checkpoint = run_dir.latest_checkpoint(begun, lambda line: None)
        if checkpoint is None or checkpoint[1].next_step != before:
            raise BadInput(
                f"--resume: {run_dir.path}: is finished and holds no checkpoint of its last step, {before}, so it "
                f"cannot go on to {after}; another --run-dir with policy.model={run_dir.policy} starts from its policy"
            )
    done = run_dir.checkpointed_steps
    if after < done:
        raise BadInput(f"--resume: loop.steps: must be at least the {done} that {run_dir.path} has done, got {after}")
    method = make_method(recipe.method)
    if any((method.sampler(s, before) is None) != (method.sampler(s, after) is None) for s in range(done)):
        raise BadInput(
            f"--resume: loop.steps: must stay {before}: {recipe.method.type} divides its steps into stages, and the "
            f"{done} that are done stand in others of {after}"
        )
    return [] if after == before else [_new_schedule(begun, recipe, done)]


def _new_schedule(begun: "Recipe", recipe: "Recipe", done: int) -> str:
    before, after = begun.loop.steps, recipe.loop.steps
    line = f"loop.steps {before} -> {after}"
    rates = [learning_rate(each.learner, step=done, total_steps=each.loop.steps) for each in (begun, recipe)]
    if done and rates[0] != rates[1]:
        line += (
            f": from step {done} on the learning rate follows the {recipe.learner.schedule} schedule of {after} steps "
            f"({rates[1]:.3g} now, where that of {before} stood at {rates[0]:.3g})"
        )
    return line


def _kept(recipe: "Recipe") -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    tree["evaluate"].pop("every")
    tree["objectives"] = [_without_operation(objective) for objective in tree["objectives"]]
    kept = {}
    for key in KEPT:
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        kept[key] = value
    return kept


def _without_operation(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {key: _without_operation(value) for key, value in tree.items() if key not in OPERATION}


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of the leaves that differ."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for name in old:
            yield from _differences(old[name], new[name], f"{key}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from _differences(first, second, f"{key}.{index}")
    elif old != new:
        yield key, old, new
