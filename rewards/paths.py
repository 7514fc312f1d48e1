"""Paths as recipes, fits and command lines name them, and what each means."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from rewards.environment import expanded_folder, expanded_path

NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
"""A name in Python, or several with dots between them."""
BESIDE = "beside"
"""Key of the validation context: the folder of the file that is read (`Path`)."""


def find(path: str, beside: Path | None = None) -> str:
    """`~` is the home folder; a relative path is what is there beside the file that names it, else the working
    directory's, as which it is returned.

    Hub ids and `hub:` sources pass: nothing of their name is there.

    Raises:
        ValueError: no file or folder can have this name.

    Example: find("data.jsonl", Path("recipes")) -> "recipes/data.jsonl" where that is there, else "data.jsonl"
    """
    path = os.path.expanduser(path)
    # In the working directory itself both are the same, and it stays as it is whether it is there already or not.
    elsewhere = path and beside is not None and not os.path.isabs(path) and beside.resolve() != Path.cwd()
    if beside is not None and elsewhere and os.path.exists(beside / path):
        path = str(beside / path)
    return expanded_path(path)


def _found(path: str, info: ValidationInfo) -> str:
    return find(path, (info.context or {}).get(BESIDE))


def _found_function(name: str, info: ValidationInfo) -> str:
    place, _, function = name.rpartition(":")
    return f"{_found(place, info)}:{function}" if is_file(place) else name


def is_file(place: str) -> bool:
    """Whether a function is named by its file, and not by its module."""
    return place.endswith(".py")


Found = Annotated[str, AfterValidator(_found)]
"""A file or folder to read, or a model's name: see `find`."""
Written = Annotated[str, AfterValidator(expanded_folder)]
"""A folder to write: `~` is the home folder, a relative one is the working directory's."""
Built = Annotated[Found, AfterValidator(expanded_folder)]
"""A folder to read, which may be built first."""
FunctionName = Annotated[str, Field(pattern=rf"^(.+\.py|{NAME}):{NAME}$"), AfterValidator(_found_function)]
"""`file.py:name`, the file as `find` finds it, or `package.module:name`."""
