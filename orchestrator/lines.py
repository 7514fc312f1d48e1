"""Lines: of JSON in files, written strictly and read back; of aligned cells, for a person."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
