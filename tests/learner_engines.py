"""A learner engine in a test's own process: its settings, a group of one rank, and what tests do with it."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from learner_ranks import free_port, make_batch, method, rank_environment
from torch import Tensor

from learner.config import LearnerConfig
from learner.dealing import deal
from learner.engine import LearnerEngine
from learner.examples import Batch
from learner.methods import MethodSection
from learner.types import StepReport

BETAS: dict[str, Any] = {"beta_c": 0.3, "beta_w": 0.1}
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "max_grad_norm": 0.5,  # below every norm here, so clipping is at work
    "micro_batch_tokens": 80,
    "schedule": "linear",
}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
MakeEngine = Callable[..., LearnerEngine]


def close_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process group of this process alone, which the process's first engine joins.

    It stays until the process ends: DeepSpeed keeps the group it was first given, and a second one finds that dead.
    """
    before = dict(os.environ)
    os.environ.update(rank_environment(0, 1, free_port()))
    atexit.register(close_group)
    yield
    os.environ.clear()
    os.environ.update(before)


def new_engine(model: str, *, by: MethodSection | None = None, seed: int = 0, **section: Any) -> LearnerEngine:
    """`section`: what differs from SETTINGS in the recipe's `learner` section."""
    return LearnerEngine(
        LearnerConfig.model_validate({**SETTINGS, **section}),
        model=model,
        method=by or method(**BETAS),
        total_steps=10,
        seed=seed,
    )


def update(engine: LearnerEngine, batch: Batch, *, rank: int = 0, ranks: int = 1) -> StepReport:
    """With what `rank` of `ranks` is dealt."""
    limit, longest = engine.config.micro_batch_tokens, engine.policy.longest_shared
    return engine.update(deal(batch, ranks=ranks, micro_batch_tokens=limit, longest_shared=longest)[rank])


def train(engine: LearnerEngine, steps: range, num_pairs: int = 5, negatives: int = 1) -> list[StepReport]:
    return [update(engine, make_batch(step, num_pairs, negatives=negatives)) for step in steps]


def weights_of(engine: LearnerEngine) -> dict[str, Tensor]:
    return {spec.name: tensor.clone() for bucket in engine.weights().buckets() for spec, tensor in bucket}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
