"""Rows of data as people keep them: JSON, CSV, Parquet, plain lines, a `datasets` folder, a data set of the hub."""

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.files import open_file, text_lines
from rewards.environment import one_line
from rewards.strict_json import parse_json

Row = dict[str, Any]
HUB = "hub:"
LINE = "prompt"
"""Key under which a line of a plain text stands."""
LONGEST_CELL = 1 << 24


def read_rows(source: str) -> Iterator[tuple[str, Row]]:
    """(place, row) for every row; the place reads `file:line` and is what an error should name.

    A file is read by its suffix: `.csv`, `.tsv`, `.parquet`, `.txt` (one row a line), `.json` (also one list of all
    rows); any other holds a JSON object a line. Texts may be gzipped, whatever they are called. A folder is one of
    `datasets`' `save_to_disk`; `hub:NAME:DATA_DIR:SPLIT` a data set of the hub, whose DATA_DIR may be empty.

    Raises:
        BadInput: it cannot be read, or not as a row; names the place.
    """
    if source.startswith(HUB):
        return _read_hub(source)
    path = Path(source)
    if path.is_dir():
        return _read_datasets_folder(path)
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    return READERS.get(suffix, _read_json_lines)(path)


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _as_row(_parse(line, place), place)


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    first = next((line.lstrip() for line in text_lines(path) if line.strip()), "")
    if not first.startswith("["):
        yield from _read_json_lines(path)
        return
    rows = _parse("\n".join(text_lines(path)), str(path))
    for number, row in enumerate(rows, start=1):
        place = f"{path}: row {number}"
        yield place, _as_row(row, place)


def _parse(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        where = f"at column {error.colno}" if error.lineno == 1 else f"in line {error.lineno}"
        raise BadInput(f"{place}: not valid JSON: {error.msg} {where}, got {text.strip()!r:.100}") from None
    except ValueError as error:  # a key twice, a number of thousands of digits, brackets within brackets
        raise BadInput(f"{place}: not valid JSON: {error}, got {text.strip()!r:.100}") from None


def _as_row(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise BadInput(f"{place}: must be a JSON object, got {type(row).__name__}")
    return row


def _read_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield f"{path}:{number}", {LINE: line.strip()}


def _read_csv(path: Path, *, delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    # A cell in quotes may hold line ends, so lines keep theirs.
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader((f"{line}\n" for line in text_lines(path)), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number = 1
    while True:
        place = f"{path}:{number}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadInput(f"{place}: not valid CSV: {error}") from None
        if cells is None:
            return
        number = reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            names = [cell.strip() for cell in cells]
            if not all(names) or len(set(names)) < len(names):
                raise BadInput(f"{place}: the first row must name every column, each once, got {names!r:.200}")
            continue
        if len(cells) != len(names):
            raise BadInput(f"{place}: must have {len(names)} cells, as the first row has, got {len(cells)}")
        yield place, dict(zip(names, cells, strict=True))


def _read_tsv(path: Path) -> Iterator[tuple[str, Row]]:
    return _read_csv(path, delimiter="\t")


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    with open_file(path) as file:
        try:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches()
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows):
                yield f"{path}: row {number}", row
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise BadInput(f"{path}: cannot be read as Parquet: {one_line(error)}") from None


def _read_datasets_folder(folder: Path) -> Iterator[tuple[str, Row]]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(file.parent.name for file in folder.glob("*/state.json"))
        raise BadInput(
            f"{folder}: must be one data set, got a DatasetDict; name one of its splits: {', '.join(splits)}"
        )
    for name in ("dataset_info.json", "state.json"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: is a folder but not one written by datasets' save_to_disk (no {name})")
    from datasets import load_from_disk

    try:
        # Without the format it was saved in, which may leave columns out or make tensors of them.
        for number, row in enumerate(load_from_disk(str(folder)).with_format(None)):
            yield f"{folder}:{number}", row
    except Exception as error:  # whatever it meets in files that are missing, cut short or of another kind
        raise BadInput(f"{folder}: cannot be read as a datasets folder: {one_line(error)}") from None


def _read_hub(source: str) -> Iterator[tuple[str, Row]]:
    try:
        name, data_dir, split = source.removeprefix(HUB).split(":")
    except ValueError:
        raise BadInput(f"source: a hub data set must read hub:NAME:DATA_DIR:SPLIT, got {source!r}") from None
    from datasets import load_dataset

    try:
        rows = load_dataset(name, data_dir=data_dir or None, split=split)
    except Exception as error:  # datasets raises a dozen kinds, from connection to missing split
        raise BadInput(f"{source}: cannot be loaded from the hub: {one_line(error)}") from None
    for number, row in enumerate(rows):
        yield f"{source}:{number}", dict(row)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
    ".json": _read_json,
}
"""By suffix; any other is `_read_json_lines`."""
