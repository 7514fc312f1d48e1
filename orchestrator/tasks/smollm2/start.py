"""Everything the `smollm2` recipes read: SmolLM2-135M-Instruct taught to read w, and everyday questions."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.files import write_lines
from orchestrator.progress import TELL
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.smollm2.questions import split_questions
from orchestrator.tasks.smollm2.source import find_weights, hub_folder, package_folder, save_weights
from orchestrator.tasks.teaching.teach import taught_from, teach_to_read
from rewards.prompts import Prompt

if TYPE_CHECKING:
    from orchestrator.config import Recipe

HELDOUT = 40
"""Questions that are never trained on."""


def build_smollm2(
    directory: Path,
    recipe: "Recipe",
    *,
    progress: Callable[[str], None] = TELL,
) -> dict[str, Any]:
    """Build (or find) DIR/policy and DIR/prompts/{train,heldout}.jsonl for this recipe; returns the manifest.

    Raises:
        BadInput: the weights are nowhere, cut short or another model's, or a judge cannot be loaded.
        RunFailed: the model could not be sampled from.
    """
    assert recipe.assets is not None
    own = {"weights": recipe.assets.weights, "code": code_digest("smollm2", "teaching", "fitting")}
    build = partial(run_apart, _build, progress, recipe=recipe)
    return build_once(directory, {**taught_from(recipe), **own}, lambda folder: build(folder=folder), progress=progress)


def _build(progress: Callable[[str], None], *, folder: Path, recipe: "Recipe") -> dict[str, Any]:
    assert recipe.assets is not None
    started = time.monotonic()
    weights = save_base(progress, folder, recipe.assets.weights)
    training, heldout = split_questions(heldout=HELDOUT, seed=recipe.seed)
    for name, questions in (("train", training), ("heldout", heldout)):
        write_lines(folder / "prompts" / f"{name}.jsonl", ({"prompt": question} for question in questions))
    taught = teach_to_read(progress, folder, str(folder / "base"), [Prompt(text=text) for text in training], recipe)
    return {"weights": weights, "taught": taught, "seconds": time.monotonic() - started}


def save_base(progress: Callable[[str], None], folder: Path, weights: str | None) -> str:
    """Write FOLDER/base; returns where the weights were. Raises BadInput as `find_weights` and `save_weights` do."""
    found = find_weights(weights, hub=hub_folder, package=package_folder)
    progress(f"SmolLM2-135M-Instruct from {found.where}")
    save_weights(found, folder / "base")
    return found.where
