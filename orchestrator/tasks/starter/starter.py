"""A folder to begin with: `mi-epo init`."""

import json
from importlib import resources
from pathlib import Path

from orchestrator.errors import BadInput
from orchestrator.tasks.assets import whole_folder

TOY, REAL = "recipe.yaml", "recipe-model.yaml"
"""Recipes of this package: of a toy that is fitted in a minute, and of a model that is given."""
FILES = ("my_rewards.py", "train.jsonl", "heldout.jsonl")
"""Of this package, as they stand."""


def write_starter(directory: Path, model: str | None = None) -> list[Path]:
    """Fill a folder that is not there yet; returns its files, the recipe first.

    Args:
        model: folder or hub id of the one to steer; None: the toy's.

    Raises:
        BadInput: it is there and not empty, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory}: must be a new or an empty folder")

    def text(name: str) -> str:
        return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

    recipe = text(TOY) if model is None else text(REAL).replace("model: MODEL ", f"model: {json.dumps(model)} ")
    with whole_folder(directory) as folder:
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        for name in FILES:
            (folder / name).write_text(text(name), encoding="utf-8")
    return [directory / name for name in ("recipe.yaml", *FILES)]
