"""Ragged token ids -> one right-padded block; examples -> the passes they need, and what a loss reads after these.

Shapes: N sequences, T tokens of the longest, M response tokens; E examples, S passes (a response under a prompt), whose
tokens are the M, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from learner.examples import Example, T


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBlock:
    """N (prompt, response) sequences, ready for one forward pass.

    Attention is causal and the padding stands on the right, so no real token ever sees padding: no mask is needed.

    Example:
        prompt (1, 4) and response (7, 2) alone: input_ids [[1, 4, 7]], positions [1, 2], targets [7, 2], rows [0, 0]
    """

    input_ids: Tensor
    """int64 [N, T]: prompt and response without its last token, which nothing is predicted from."""
    positions: Tensor
    """int64 [M]: index into the flattened [N * T] of the token that each response token is predicted from."""
    targets: Tensor
    """int64 [M]: the response tokens."""
    rows: Tensor
    """int64 [M]: the sequence each response token belongs to."""
    num_tokens: int
    """Prompt and response tokens, padding not counted."""

    def sum_by_sequence(self, per_token_M: Tensor) -> Tensor:
        """[N] sums over each sequence's response tokens."""
        return per_token_M.new_zeros(len(self.input_ids)).index_add(0, self.rows, per_token_M)


def pack_sequences(
    prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> SequenceBlock:
    """Lay out N sequences side by side; prompts and responses must not be empty.

    Raises:
        ValueError: an empty prompt or response, or unequal numbers of them.
    """
    if len(prompt_ids) != len(response_ids) or not prompt_ids:
        raise ValueError(f"one response per prompt, at least one, got {len(prompt_ids)} and {len(response_ids)}")
    lengths = [(len(prompt), len(response)) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    empty = next((row for row, pair in enumerate(lengths) if not all(pair)), None)
    if empty is not None:
        raise ValueError(f"sequence {empty}: prompt and response must not be empty, got lengths {lengths[empty]}")
    width = max(prompt + response for prompt, response in lengths) - 1
    padded = [
        [*prompt, *response[:-1], *([0] * (width + 1 - len(prompt) - len(response)))]
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]
    positions = [
        row * width + prompt - 1 + t for row, (prompt, response) in enumerate(lengths) for t in range(response)
    ]
    targets = [token for response in response_ids for token in response]
    rows = [row for row, (_, response) in enumerate(lengths) for _ in range(response)]
    return SequenceBlock(
        input_ids=torch.tensor(padded, device=device),
        positions=torch.tensor(positions, device=device),
        targets=torch.tensor(targets, device=device),
        rows=torch.tensor(rows, device=device),
        num_tokens=sum(map(sum, lengths)),
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


def pack_examples(examples: Sequence[Example[T]], *, device: torch.device | str = "cpu") -> SequenceBlock:
    """Every response of every example once under each of its prompts, as `layout` orders them."""
    passes = layout(examples)
    prompts = [examples[e].prompts[m] for m, e, _ in passes]
    return pack_sequences(prompts, [examples[e].responses[j] for _, e, j in passes], device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Generic[T]):
    """Example: Evaluated(examples=[example], block=pack_examples([example]), logprob=zeros(7), reference=zeros(7))"""

    examples: Sequence[Example[T]]
    block: SequenceBlock
    logprob: Tensor
    """float32 [M], of each response token under the policy, in nats, with gradient."""
    reference: Tensor | None
    """float32 [M], the same under the frozen start; None for a method that does not use it."""

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
