"""What a method is given and what it gives: one prompt's scored responses in, its share of an update out. No torch.

Shapes: N responses, K objectives, M vectors w-, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Ids = tuple[int, ...]
T = TypeVar("T")
"""What a method's `label` tells its own `loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prompt when its responses are scored; it stays on the driver.

    Example:
        Group(preference=array([.7, .3]), scores=array([[1., 0.], [0., 1.]]), prompts=((1, 17, 4), (1, 17, 9)),
              responses=((5, 2), (6, 2)), logprobs=((-.1, -.4), (-.9, -.2)), asking=renderer, seed=7, progress=0.25)
    """

    preference: np.ndarray
    """float64 [K]: w+, or the levels that the prompt asks for."""
    scores: np.ndarray
    """float64 [N, K], on the method's scale (`Method.transform`), every one finite."""
    prompts: tuple[Ids, ...]
    """[1 + M] tokens of G(x, w+), G(x, w-_1), ..."""
    responses: tuple[Ids, ...]
    """[N] sampled tokens, the end-of-sequence token included where it was sampled; none is empty."""
    logprobs: tuple[tuple[float, ...], ...]
    """[N, T] of every sampled token under the policy that sampled it, in nats."""
    asking: Callable[[Sequence[float]], Ids]
    """Tokens of the same prompt asking for these levels [K] instead."""
    seed: int
    """Of whatever the method draws: the same in a repeated step."""
    progress: float
    """Share of the run's steps that lies before this one, in [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Generic[T]):
    """A share of an update: every response passes once under every prompt, in however many pairs it is.

    Example:
        Example(prompts=((1, 17, 4), (1, 17, 9)), responses=((5, 2), (6, 7, 2)), targets=PairTargets(...),
                preference=(.7, .3))
    """

    prompts: tuple[Ids, ...]
    """Those that the method passes: at least G(x, w+)."""
    responses: tuple[Ids, ...]
    """Those that its targets name."""
    targets: T
    preference: tuple[float, ...]
    """[K] w+ (or levels): w travels with every sample."""

    def __post_init__(self) -> None:
        if not self.prompts or not self.responses or not all((*self.prompts, *self.responses)):
            raise ValueError(f"prompts and responses must not be empty, got {self.prompts!r} and {self.responses!r}")


def longest_sequence(example: Example[T]) -> int:
    """Tokens of its longest response under its longest prompt."""
    return max(map(len, example.prompts)) + max(map(len, example.responses))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[T]):
    """All examples of one optimizer step.

    Example:
        Batch(step=12, examples=(example, another_example))
    """

    step: int
    """Index of the step in the run, from 0; the learning rate follows from it."""
    examples: tuple[Example[T], ...]
    """May be fewer than planned where samples were dropped."""
    anchor: float = 1.0
    """Factor on the strength of the loss's anchor to the start, by `method.kl_budget`."""
