"""Rows for a fit: read, checked, split into training and held-out."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from orchestrator.data import read_rows
from orchestrator.errors import BadInput
from orchestrator.tasks.fitting.config import FitConfig

Row = Mapping[str, Any]
Item = TypeVar("Item")


def load_rows(path: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Rows in file order, each with a text in every one of `fields` (only the prompt may be empty).

    Raises:
        BadInput: naming file and line.
    """
    rows = []
    for place, row in read_rows(path):
        for name in fields:
            if not isinstance(row.get(name), str) or (name != "prompt" and not row[name].strip()):
                raise BadInput(f"{place}: {name!r} must be a non-empty text, got {row.get(name)!r:.100}")
        rows.append(row)
    if not rows:
        raise BadInput(f"{path}: holds no rows")
    return rows


def read_split(config: FitConfig, fields: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """(training rows, held-out rows) from the config's files; None when no file of held-out rows is named."""
    assert config.data is not None
    heldout = load_rows(config.heldout, fields) if config.heldout is not None else None
    return load_rows(config.data, fields), heldout


def split(items: Sequence[Item], heldout: Sequence[Item] | None, config: FitConfig) -> tuple[list[Item], list[Item]]:
    """(training, held-out) items; the held-out share is drawn by the seed unless the items are given."""
    if heldout is None:
        count = int(len(items) * config.heldout_fraction)
        order = np.random.default_rng([config.seed, 10]).permutation(len(items))
        drawn = set(order[:count].tolist())
        heldout = [item for index, item in enumerate(items) if index in drawn]
        items = [item for index, item in enumerate(items) if index not in drawn]
    if not items:
        raise BadInput(f"{config.data or 'rows'}: holds no rows to train on")
    return list(items), list(heldout)
