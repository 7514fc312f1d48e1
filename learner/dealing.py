"""One step's examples -> what each rank passes, a micro-batch at a time. No torch.

Every rank passes as many micro-batches, so that collectives line up; where a rank has none left, it passes a filler of
weight zero, and the gradient is exactly the mean over the real examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from learner.examples import Batch, Example, T, longest_sequence
from learner.trees import fill_rows, grow


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(Generic[T]):
    """What one rank passes in one optimizer step.

    Example:
        Share(step=12, micro_batches=((example, another), ()), filler=example, total=5, shared=True)
    """

    step: int
    """Index of the step in the run, from 0; the learning rate follows from it."""
    micro_batches: tuple[tuple[Example[T], ...], ...]
    """As many on every rank; an empty one passes the filler."""
    filler: Example[T]
    """Passed times zero: the smallest example of the step."""
    total: int
    """Examples of all ranks."""
    shared: bool
    """Whether what an example's passes begin with alike passes once."""
    anchor: float = 1.0
    """Of the batch."""

    def __post_init__(self) -> None:
        held = sum(map(len, self.micro_batches))
        if not self.micro_batches or not held <= self.total:
            raise ValueError(
                f"step {self.step}: a share needs a micro-batch, and no more examples than all ranks have together, "
                f"got {len(self.micro_batches)} with {held} of {self.total}"
            )


def deal(batch: Batch[T], *, ranks: int, micro_batch_tokens: int, longest_shared: int = 0) -> list[Share[T]]:
    """Each rank's share of a batch that is not empty: about as many tokens, in about as few micro-batches as can be.

    Args:
        micro_batch_tokens: most tokens of a micro-batch, padding counted; an example that has more passes alone.
        longest_shared: of `learner.policy.PolicyModule`.
    """
    shared = max(map(longest_sequence, batch.examples)) <= longest_shared
    shapes = [_shape(example, shared=shared) for example in batch.examples]
    tokens = [rows * width for rows, width in shapes]
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(tokens)), key=lambda each: -tokens[each]):
        least = loads.index(min(loads))
        hands[least].append(index)
        loads[least] += tokens[index]
    dealt = [_cut(hand, shapes, micro_batch_tokens, shared=shared) for hand in hands]
    most = max(map(len, dealt))
    return [
        Share(
            step=batch.step,
            micro_batches=tuple(
                tuple(batch.examples[index] for index in indices) for indices in [*own, *([[]] * (most - len(own)))]
            ),
            filler=batch.examples[tokens.index(min(tokens))],
            total=len(batch.examples),
            shared=shared,
            anchor=batch.anchor,
        )
        for own in dealt
    ]


def _shape(example: Example, *, shared: bool) -> tuple[int, int]:
    """Rows of an example's passes, and their width."""
    if not shared:
        return len(example.prompts) * len(example.responses), longest_sequence(example) - 1
    # Responses that begin alike make it smaller still; they are few, and finding them takes as long as packing does.
    after = sum(len(response) - 1 for response in example.responses)
    return 1, len(grow(example.prompts)) + len(example.prompts) * after


def _cut(hand: Sequence[int], shapes: Sequence[tuple[int, int]], limit: int, *, shared: bool) -> list[list[int]]:
    """Micro-batches of neighbours in size: little padding."""
    cut: list[list[int]] = []
    for index in hand:
        if cut and _padded([shapes[each] for each in (*cut[-1], index)], shared=shared) <= limit:
            cut[-1].append(index)
        else:
            cut.append([index])
    return cut


def _padded(shapes: Sequence[tuple[int, int]], *, shared: bool) -> int:
    """Tokens of the block that `learner.sequences.pack_examples` makes of them."""
    widths = [width for _, width in shapes]
    rows = len(fill_rows(widths, max(widths))) if shared else sum(rows for rows, _ in shapes)
    return rows * max(widths)
