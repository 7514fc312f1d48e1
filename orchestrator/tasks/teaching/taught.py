"""What a recipe with `assets.build: taught` reads: its model, taught to read w on the recipe's own prompts."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from orchestrator.progress import TELL
from orchestrator.sections import BUILT_MODELS, MINIATURE, SMOLLM2
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.teaching.teach import taught_from, teach_to_read
from rewards.environment import local_folder
from rewards.prompts import Prompt

if TYPE_CHECKING:
    from orchestrator.config import Recipe


def build_taught(directory: Path, recipe: "Recipe", *, progress: Callable[[str], None] = TELL) -> dict[str, Any]:
    """Build (or find) DIR/policy for this recipe; returns the manifest.

    Raises:
        BadInput: the prompts or the model cannot be read, or a judge cannot be loaded.
        RunFailed: the model could not be sampled from.
    """
    assert recipe.assets is not None and recipe.assets.model is not None
    data = recipe.data
    prompts = load_prompts(data.train, field=data.prompt_field, limit=data.max_prompts, columns=recipe.columns)
    asked = some_prompts(prompts, recipe.assets.teaching.prompts, seed=recipe.seed)
    key = {
        **taught_from(recipe),
        "model": recipe.assets.model,
        "files": model_files(recipe.assets.model),
        "prompts": [[prompt.plain, dict(prompt.columns)] for prompt in asked],
        "code": code_digest("teaching", "fitting", *({recipe.assets.model} & {*BUILT_MODELS})),
    }
    build = partial(run_apart, _build, progress, recipe=recipe, prompts=asked)
    return build_once(directory, key, lambda folder: build(folder=folder), progress=progress)


def _build(progress: Callable[[str], None], *, folder: Path, recipe: "Recipe", prompts: list[Prompt]) -> dict[str, Any]:
    assert recipe.assets is not None and recipe.assets.model is not None
    started, base = time.monotonic(), recipe.assets.model
    if base == MINIATURE:
        base = _fit_miniature(progress, folder / "base", seed=recipe.seed)
    elif base == SMOLLM2:
        from orchestrator.tasks.smollm2.start import save_base

        save_base(progress, folder, recipe.assets.weights)
        base = str(folder / "base")
    taught = teach_to_read(progress, folder, base, prompts, recipe)
    return {"taught": taught, "seconds": time.monotonic() - started}


def _fit_miniature(progress: Callable[[str], None], folder: Path, *, seed: int) -> str:
    """The small world's policy, which knows none of the recipe's objectives."""
    from orchestrator.tasks.miniature.fits import fit_starting_policy
    from orchestrator.tasks.miniature.grammar import split_prompts

    prompts, _ = split_prompts(seed)
    fit_starting_policy(folder, prompts, objectives=("helpfulness", "harmlessness"), seed=seed, progress=progress)
    return str(folder)


def some_prompts(prompts: list[Prompt], count: int, *, seed: int) -> list[Prompt]:
    """So many different ones, or all there are, in an order drawn by `seed`."""
    different = list(dict.fromkeys(prompts))
    order = np.random.default_rng([seed, 21]).permutation(len(different))
    return [different[index] for index in order[:count]]


def model_files(model: str) -> dict[str, list[int]]:
    """Name -> [bytes, time of the last change in ns] of a folder's files; nothing of a hub id, which names itself.

    Raises BadInput: no such folder is there.
    """
    folder = None if model in BUILT_MODELS else local_folder(model)
    if folder is None:
        return {}
    if not folder.is_dir():
        raise BadInput(f"assets.model: must be a folder that is there, or a hub id, got {model!r}")
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.iterdir())}
