"""A micro-batch of examples on a rank: how it is laid out, and what a loss reads after the forward passes.

Shapes: E examples, S passes (a response under a prompt), M response tokens of all passes, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from learner.examples import Example, T
from learner.sequences import SequenceBlock, pack_sequences


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

    @property
    def other_prompts(self) -> range:
        """Indices of the prompts beside G(x, w+); every example has as many."""
        return range(1, len(self.examples[0].prompts))

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

    def passes(self, prompt: int, chosen: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """int64 [P, 2]: the passes of each example's pairs of responses [E][P_e][2] under its prompt of that index."""
        place = {item: row for row, item in enumerate(layout(self.examples))}
        rows = [[place[prompt, e, j] for j in pair] for e, pairs in enumerate(chosen) for pair in pairs]
        return torch.tensor(rows, device=self.logprob.device)
