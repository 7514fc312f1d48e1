"""Token sequences that begin alike -> a tree in which every beginning stands once. No torch.

What a causal model computes of a token depends on the tokens before it alone, so sequences share whatever it computes
of the tokens that they begin with: the prompt of several responses, or what stands before w in the prompts of several
vectors. Nodes stand in preorder, each before all that descend from it: node k is q or stands before it in a sequence
exactly when k <= q < ends[k]. Shapes: S sequences, T nodes of a tree, or of a row of trees; R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """The distinct beginnings of S sequences.

    Example:
        grow([(1, 4, 7), (1, 4, 8)]): tokens [1, 4, 7, 8], depths [0, 1, 2, 2], ends [4, 4, 3, 4],
        paths ([0, 1, 2], [0, 1, 3])
    """

    tokens: np.ndarray
    """int64 [T]"""
    depths: np.ndarray
    """int64 [T]: place of the token in its sequences, from 0."""
    ends: np.ndarray
    """int64 [T]: the first node after all those that descend from this one."""
    paths: tuple[np.ndarray, ...]
    """[S] int64: the nodes of each sequence's tokens."""

    def __len__(self) -> int:
        return len(self.tokens)


def grow(sequences: Sequence[Sequence[int]]) -> TokenTree:
    """The tree of these sequences, of which there is at least one and none is empty; they may repeat."""
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    paths: dict[int, np.ndarray] = {}
    path: list[int] = []  # nodes of the sequence before
    before: Sequence[int] = ()
    # In lexicographic order every sequence shares with the one before all that it shares with any before.
    for index in sorted(range(len(sequences)), key=lambda each: tuple(sequences[each])):
        sequence = sequences[index]
        shared = common_prefix(before, sequence)
        for node in path[shared:]:
            ends[node] = len(tokens)
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(sequence) - shared))
        tokens.extend(sequence[shared:])
        depths.extend(range(shared, len(sequence)))
        ends.extend([0] * (len(sequence) - shared))
        paths[index] = np.array(path)
        before = sequence
    for node in path:
        ends[node] = len(tokens)
    return TokenTree(
        tokens=np.array(tokens),
        depths=np.array(depths),
        ends=np.array(ends),
        paths=tuple(paths[index] for index in range(len(sequences))),
    )


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(left), len(right))
    return next((t for t in range(length) if left[t] != right[t]), length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Trees in rows of one width, whose nodes know nothing of another tree's; what is left of a row is padding.

    Padding sees itself alone, and is seen by nothing.
    """

    tokens: np.ndarray
    """int64 [R, T]"""
    depths: np.ndarray
    """int64 [R, T]"""
    ends: np.ndarray
    """int64 [R, T]: index into the row, as for a tree."""
    starts: tuple[int, ...]
    """Index into the flattened [R * T] of each tree's first node."""


def plant(trees: Sequence[TokenTree], rows: Sequence[Sequence[int]]) -> Forest:
    """Set the trees side by side.

    Args:
        rows: which trees stand in each row, by index; every tree in one of them.
    """
    width = max(sum(len(trees[index]) for index in row) for row in rows)
    tokens = np.zeros((len(rows), width), np.int64)
    depths = np.zeros((len(rows), width), np.int64)
    ends = np.tile(np.arange(1, width + 1), (len(rows), 1))
    starts = [0] * len(trees)
    for number, row in enumerate(rows):
        column = 0
        for index in row:
            tree = trees[index]
            place = number, slice(column, column + len(tree))
            tokens[place], depths[place], ends[place] = tree.tokens, tree.depths, tree.ends + column
            starts[index] = number * width + column
            column += len(tree)
    return Forest(tokens=tokens, depths=depths, ends=ends, starts=tuple(starts))


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of at most `width` that hold items of these lengths, each whole: the indices in every row.

    Longest first, each in the first row with room for it. No item may be longer than `width`.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows
