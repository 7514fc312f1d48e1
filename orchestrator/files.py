"""Files: lines of JSON, written strictly and read back; texts replaced whole; locks. And aligned cells, to be read."""

import contextlib
import fcntl
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from orchestrator.errors import BadInput

Record = dict[str, Any]


def json_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON: NaN and infinities become null."""
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same value with null for what JSON cannot say, and plain numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[Record]:
    """Records of a JSONL file, none where there is no file; a last line that a killed run left unfinished is ignored.

    Raises:
        BadInput: another line is no JSON; names file and line.
    """
    if not path.is_file():
        return []
    # Not splitlines(): texts may hold the other characters that Unicode calls line ends.
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise BadInput(f"{path}:{number}: is no JSON: {error.msg}") from None
    return records


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file, with the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(json_line, records))


def replace_text(file: Path, text: str) -> None:
    """Write a file so that whoever looks sees the old text or the new one, also after a kill."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def as_text(table: Sequence[Sequence[str]]) -> str:
    """A table's rows as lines, its columns aligned."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, late: str) -> Iterator[IO[str]]:
    """Hold `path`, made where there is none, until the end of the block; one process at a time, however it ends.

    Yields the open file: a child process that inherits it (`pass_fds`) holds the lock as well, until it ends.

    Raises:
        BadInput: the folder cannot be written, or another process held the lock for `timeout_s`, which `late` says.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(late) from None
                time.sleep(0.5)
        yield file
