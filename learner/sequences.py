"""Ragged token ids -> a block for one forward pass; examples -> their passes, and what a loss reads after these.

Shapes: N sequences (a prompt and a response), R rows of T tokens, M response tokens; E examples, S passes (a response
under a prompt), which are the sequences of their block; P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from learner.examples import Example, T
from learner.trees import fill_rows, grow, plant


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBlock:
    """N (prompt, response) sequences, ready for one forward pass.

    Each row holds one sequence, with padding on the right; or trees of sequences, which `depths` and `ends` tell apart.
    Without these attention is causal, so no real token ever sees padding and no mask is needed.

    Example:
        prompt (1, 4) and response (7, 2) alone: input_ids [[1, 4, 7]], positions [1, 2], targets [7, 2], owners [0, 0]
    """

    input_ids: Tensor
    """int64 [R, T]: prompts and responses, each without its last token, which nothing is predicted from."""
    positions: Tensor
    """int64 [M]: index into the flattened [R * T] of the token that each response token is predicted from."""
    targets: Tensor
    """int64 [M]: the response tokens."""
    owners: Tensor
    """int64 [M]: the sequence each response token belongs to."""
    num_sequences: int
    num_tokens: int
    """Tokens that pass, padding not counted."""
    depths: Tensor | None = None
    """int64 [R, T], with trees: place of a token in its sequences, from 0."""
    ends: Tensor | None = None
    """int64 [R, T], with trees: token q of a row sees token k exactly when k <= q < ends[k] (`learner.trees`)."""

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """What `learner.policy.PolicyModule` is called with."""
        return self.input_ids, self.positions, self.targets, self.depths, self.ends

    def sum_by_sequence(self, per_token_M: Tensor) -> Tensor:
        """[N] sums over each sequence's response tokens."""
        return per_token_M.new_zeros(self.num_sequences).index_add(0, self.owners, per_token_M)


def pack_sequences(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    together: Sequence[Sequence[int]] | None = None,
    device: torch.device | str = "cpu",
) -> SequenceBlock:
    """Lay out N sequences; prompts and responses must not be empty.

    Args:
        together: sequences that are likely to begin alike, by index, each sequence once: what those of one list have in
            common passes once. None: every sequence passes whole, in a row of its own.

    Raises:
        ValueError: an empty prompt or response, or unequal numbers of them.
    """
    if len(prompt_ids) != len(response_ids) or not prompt_ids:
        raise ValueError(f"one response per prompt, at least one, got {len(prompt_ids)} and {len(response_ids)}")
    lengths = [(len(prompt), len(response)) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    empty = next((row for row, pair in enumerate(lengths) if not all(pair)), None)
    if empty is not None:
        raise ValueError(f"sequence {empty}: prompt and response must not be empty, got lengths {lengths[empty]}")
    inputs = [(*prompt, *response[:-1]) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    groups = together or [[sequence] for sequence in range(len(inputs))]
    trees = [grow([inputs[sequence] for sequence in group]) for group in groups]
    lengths_of_trees = list(map(len, trees))
    rows = fill_rows(lengths_of_trees, max(lengths_of_trees)) if together else [[tree] for tree in range(len(trees))]
    forest = plant(trees, rows)
    predicting = [np.empty(0)] * len(inputs)
    for start, tree, group in zip(forest.starts, trees, groups, strict=True):
        for path, sequence in zip(tree.paths, group, strict=True):
            predicting[sequence] = start + path[lengths[sequence][0] - 1 :]
    return SequenceBlock(
        input_ids=torch.from_numpy(forest.tokens).to(device),
        positions=torch.from_numpy(np.concatenate(predicting)).to(device),
        targets=torch.tensor([token for response in response_ids for token in response], device=device),
        owners=torch.tensor(
            [sequence for sequence, (_, response) in enumerate(lengths) for _ in range(response)], device=device
        ),
        num_sequences=len(inputs),
        num_tokens=sum(lengths_of_trees),
        depths=torch.from_numpy(forest.depths).to(device) if together else None,
        ends=torch.from_numpy(forest.ends).to(device) if together else None,
    )


def layout(examples: Sequence[Example[T]]) -> list[tuple[int, int, int]]:
    """(prompt, example, response) of each pass: first every example under its first prompt, then under its second."""
    widest = max(len(example.prompts) for example in examples)
    return [
        (m, e, j)
        for m in range(widest)
        for e, example in enumerate(examples)
        if m < len(example.prompts)
        for j in range(len(example.responses))
    ]


def pack_examples(examples: Sequence[Example[T]], *, shared: bool, device: torch.device | str = "cpu") -> SequenceBlock:
    """Every response of every example once under each of its prompts, as `layout` orders them.

    Args:
        shared: what the passes of one example begin with alike passes once.
    """
    passes = layout(examples)
    of_example: list[list[int]] = [[] for _ in examples]
    for index, (_, e, _) in enumerate(passes):
        of_example[e].append(index)
    return pack_sequences(
        [examples[e].prompts[m] for m, e, _ in passes],
        [examples[e].responses[j] for _, e, j in passes],
        together=of_example if shared else None,
        device=device,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Generic[T]):
    """What a loss reads.

    Example: Evaluated(examples=[example], block=block, logprob=zeros(7), reference=zeros(7))
    """

    examples: Sequence[Example[T]]
    block: SequenceBlock
    logprob: Tensor
    """float32 [M], of each response token under the policy, in nats, with gradient."""
    reference: Tensor | None
    """float32 [M], the same under the frozen start; None for a method that does not use it."""
    anchor: float = 1.0
    """Factor on the strength of the loss's anchor to the start."""

    @property
    def targets(self) -> list[T]:
        """[E]"""
        return [example.targets for example in self.examples]

    def require_reference(self) -> Tensor:
        """`reference`, for a method that uses it."""
        if self.reference is None:
            raise ValueError("this method's uses_reference is False, so there is no reference to compare with")
        return self.reference

    def logratio(self, *, per_token: bool = False) -> Tensor:
        """[S] log pi - log pi_ref of each pass: summed over its response tokens, or their mean."""
        ratio_S = self.block.sum_by_sequence(self.logprob - self.require_reference())
        return ratio_S / self.lengths() if per_token else ratio_S

    def lengths(self) -> Tensor:
        """float [S]: response tokens of each pass."""
        return self.block.sum_by_sequence(torch.ones_like(self.logprob))

    def passes(self, chosen: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """int64 [1 + M, P, 2]: the passes of each example's pairs of responses [E][P_e][2] under each of its prompts.

        Every example must have as many prompts.
        """
        place = {item: row for row, item in enumerate(layout(self.examples))}
        rows = [
            [[place[m, e, j] for j in pair] for e, pairs in enumerate(chosen) for pair in pairs]
            for m in range(len(self.examples[0].prompts))
        ]
        return torch.tensor(rows, device=self.logprob.device)
