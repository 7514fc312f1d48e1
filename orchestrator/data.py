"""Prompts: from the rows of data to a checked list, and from the list to batches."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.errors import BadInput
from orchestrator.rows import Row, read_rows
from rewards.environment import is_unicode
from rewards.prompts import Prompt, read_dialogue


def load_prompts(source: str, *, field: str, limit: int | None = None, columns: Sequence[str] = ()) -> list[Prompt]:
    """Prompts in the order of their rows.

    Args:
        field: key of a row's prompt: a text, or a dialogue as a list of {"role", "content"}.
        columns: further keys whose values are kept.

    Raises:
        BadInput: missing or unreadable data, a broken row (file and line number), one without a prompt in `field` or
            without one of `columns`, or no prompt at all.
    """
    prompts: list[Prompt] = []
    for place, row in read_rows(source):
        prompts.append(_prompt_of(row, field, columns, place))
        if limit is not None and len(prompts) == limit:
            break
    if not prompts:
        raise BadInput(f"{source}: holds no prompts")
    return prompts


def _prompt_of(row: Row, field: str, columns: Sequence[str], place: str) -> Prompt:
    kept = {name: _value_of(row, name, place) for name in columns}
    messages = row.get(field)
    if not isinstance(messages, list):
        return Prompt(text=text_of(row, field, place), columns=kept)
    try:
        earlier, text = read_dialogue(messages)
    except ValueError as error:
        raise BadInput(f"{place}: {field!r} as a dialogue {error}") from None
    if not all(map(is_unicode, (text, *(turn.content for turn in earlier)))):
        raise BadInput(f"{place}: {field!r} must be whole characters, got half of one")
    return Prompt(text=text, earlier=earlier, columns=kept)


def _value_of(row: Row, name: str, place: str) -> Any:
    if name not in row:
        raise BadInput(f"{place}: {name!r} must be there, as a judge asks for it; the row has {_keys(row)}")
    try:
        json.dumps(row[name], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{place}: {name!r} must be what JSON can say, got {row[name]!r:.100}: {error}") from None
    return row[name]


def text_of(row: Row, field: str, place: str, *, may_be_empty: bool = False) -> str:
    """The text in a column of a row. Raises BadInput, naming the place and, where it has none, the row's columns."""
    text = row.get(field)
    if not isinstance(text, str) or not (text.strip() or may_be_empty):
        others = "" if field in row else f"; the row has {_keys(row)}"
        raise BadInput(f"{place}: {field!r} must be a non-empty text, got {text!r:.100}{others:.200}")
    if not is_unicode(text):
        raise BadInput(f"{place}: {field!r} must be whole characters, got half of one in {text!r:.100}")
    return text


def _keys(row: Row) -> str:
    return ", ".join(map(repr, row)) or "no columns"


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
