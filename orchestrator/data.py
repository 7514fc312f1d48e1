"""Prompts: from JSONL (plain or gzip) or a `datasets` folder to a checked list, and from the list to batches."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import BadInput
from orchestrator.files import text_lines
from rewards.environment import is_unicode, one_line
from rewards.strict_json import parse_json


def load_prompts(path: str, *, field: str, limit: int | None = None) -> list[str]:
    """Prompts in file order.

    Raises:
        BadInput: missing or unreadable file, broken line (file and line number), a row without a non-empty text in
            `field`, or no prompt at all.
    """
    prompts: list[str] = []
    for place, row in read_rows(path):
        prompts.append(text_of(row, field, place))
        if limit is not None and len(prompts) == limit:
            break
    if not prompts:
        raise BadInput(f"{path}: holds no prompts")
    return prompts


def text_of(row: dict[str, Any], field: str, place: str, *, may_be_empty: bool = False) -> str:
    """The text in a column of a row. Raises BadInput, naming the place and, where it has none, the row's columns."""
    text = row.get(field)
    if not isinstance(text, str) or not (text.strip() or may_be_empty):
        others = "" if field in row else f"; the row has {', '.join(map(repr, row)) or 'no columns'}"
        raise BadInput(f"{place}: {field!r} must be a non-empty text, got {text!r:.100}{others:.200}")
    if not is_unicode(text):
        raise BadInput(f"{place}: {field!r} must be whole characters, got half of one in {text!r:.100}")
    return text


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for every row; the place reads `file:line` and is what an error should name.

    Raises:
        BadInput: it cannot be read, or a line is no JSON object.
    """
    source = Path(path)
    if source.is_dir():
        yield from _read_datasets_folder(source)
        return
    for number, line in enumerate(text_lines(source), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse_line(line, f"{path}:{number}")


def _parse_line(line: str, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{place}: not valid JSON: {error.msg} at column {error.colno}, got {line.strip()!r:.100}"
        ) from None
    except ValueError as error:  # a key twice, a number of thousands of digits, brackets within brackets
        raise BadInput(f"{place}: not valid JSON: {error}, got {line.strip()!r:.100}") from None
    if not isinstance(row, dict):
        raise BadInput(f"{place}: must be a JSON object, got {type(row).__name__}")
    return row


def _read_datasets_folder(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if (source / "dataset_dict.json").is_file():
        splits = sorted(file.parent.name for file in source.glob("*/state.json"))
        raise BadInput(
            f"{source}: must be one data set, got a DatasetDict; name one of its splits: {', '.join(splits)}"
        )
    for name in ("dataset_info.json", "state.json"):
        if not (source / name).is_file():
            raise BadInput(f"{source}: is a folder but not one written by datasets' save_to_disk (no {name})")
    from datasets import load_from_disk

    try:
        # Without the format it was saved in, which may leave columns out or make tensors of them.
        for number, row in enumerate(load_from_disk(str(source)).with_format(None)):
            yield f"{source}:{number}", row
    except Exception as error:  # whatever it meets in files that are missing, cut short or of another kind
        raise BadInput(f"{source}: cannot be read as a datasets folder: {one_line(error)}") from None


class PromptStream:
    """Endless shuffled epochs over prompts; batch `step` depends only on (seed, step), so a resumed run needs no state.

    Example: `PromptStream(prompts, batch_size=32, seed=0).batch(step=7)` -> 32 prompt indices.
    """

    def __init__(self, num_prompts: int, *, batch_size: int, seed: int) -> None:
        self.num_prompts = num_prompts
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, step: int) -> list[int]:
        """Indices [B] of the prompts of optimizer step `step` (from 0)."""
        first = step * self.batch_size
        return [self._index_at(position) for position in range(first, first + self.batch_size)]

    def _index_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_prompts)
        return int(self._epoch_order(epoch)[offset])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_cached_epoch", None) != epoch:
            self._cached_epoch = epoch
            self._cached_order = np.random.default_rng([self.seed, epoch]).permutation(self.num_prompts)
        return self._cached_order


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items evenly spaced over the sequence, in order (all of them when there are fewer)."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] if count > 1 else items[0] for i in range(count)]
