"""A folder to begin with: `mi-epo init`."""

from importlib import resources
from pathlib import Path

from orchestrator.errors import BadInput
from orchestrator.tasks.assets import whole_folder

FILES = ("recipe.yaml", "my_rewards.py", "train.jsonl", "heldout.jsonl")
"""Of this package, as they stand."""


def write_starter(directory: Path) -> list[Path]:
    """Fill a folder that is not there yet; returns its files.

    Raises:
        BadInput: it is there and not empty, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory}: must be a new or an empty folder")
    with whole_folder(directory) as folder:
        for name in FILES:
            text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
            (folder / name).write_text(text, encoding="utf-8")
    return [directory / name for name in FILES]
