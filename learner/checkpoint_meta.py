"""The description of a learner checkpoint, and whether its files are what it says. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from learner.types import LearnerError
from rewards.config import Section

META = "learner.json"


class LearnerMeta(Section):
    """learner.json, written last: without it there is no checkpoint."""

    identity: dict[str, Any]
    """What the learner that goes on must agree on."""
    adam_steps: int = Field(ge=0)
    files: dict[str, str]
    """File name -> sha256."""


def read_meta(path: Path) -> LearnerMeta:
    """Of the checkpoint in the folder `path`, after comparing every file with its checksum.

    Raises:
        LearnerError: no checkpoint there, or a damaged one; names what is wrong.
    """
    try:
        meta = LearnerMeta.model_validate_json((path / META).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LearnerError(f"checkpoint {path}: no readable {META}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise LearnerError(f"checkpoint {path}: {META}: {where}: {first['msg']}") from None
    for name, digest in meta.files.items():
        if Path(name).name != name or not (path / name).is_file() or sha256_of(path / name) != digest:
            raise LearnerError(f"checkpoint {path}: file {name!r} is missing or damaged")
    return meta


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
