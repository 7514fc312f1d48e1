"""What DeepSpeed makes of what it is told: how gradients add up."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from learner_engines import LORA, MakeEngine, group_of_one, largest_difference, new_engine, weights_of
from learner_ranks import make_batch, run_ranks
from tiny_models import make_tiny_policy

from learner.engine import LearnerEngine
from learner.examples import Batch

BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "micro_batch_prompts": 1}
NO_DROPOUT = {**LORA, "dropout": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_policy(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def make_engine(model: str) -> Iterator[MakeEngine]:
    with group_of_one():
        yield partial(new_engine, model)


def norms_of_repeats(engine: LearnerEngine, *, repeats: int, ranks: int = 1) -> list[float]:
    """Gradient norms of two steps whose batch is one example over and over."""
    examples = make_batch(0, 1).examples * repeats
    batches = [Batch(step=step, examples=examples) for step in range(2)]
    return [engine.update(batch, total=repeats * ranks).metrics["grad_norm"] for batch in batches]


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"zero_stage": 2, "lora": NO_DROPOUT},
        {"zero_stage": 3},
    ],
    ids=str,
)
def test_sixty_four_micro_batches_of_one_example_take_the_step_of_one(
    make_engine: MakeEngine, section: dict[str, Any]
) -> None:
    """Each has 1/64 of the gradient, exactly, and float32 adds these up exactly; bfloat16 would lose 1 in 400."""
    one, many = (make_engine(**BFLOAT16, **section, examples_per_step=repeats) for repeats in (1, 64))
    assert norms_of_repeats(many, repeats=64) == norms_of_repeats(one, repeats=1)
    assert largest_difference(weights_of(many), weights_of(one)) == 0


def repeat_in_rank(rank: int, model: str) -> list[tuple[list[float], dict[str, Any]]]:
    """In each of two spawned processes: norms and weights after 16 micro-batches, where stages shard gradients."""
    results = []
    for stage in (2, 3):
        engine = new_engine(model, **BFLOAT16, zero_stage=stage, ranks=2, examples_per_step=32)
        norms = norms_of_repeats(engine, repeats=16, ranks=2)
        results.append((norms, {name: tensor.float().numpy() for name, tensor in weights_of(engine).items()}))
    return results


def test_micro_batches_of_two_ranks_take_the_step_of_one(make_engine: MakeEngine, model: str) -> None:
    one = make_engine(**BFLOAT16, examples_per_step=1)
    expected = norms_of_repeats(one, repeats=1)
    for replies in run_ranks(2, repeat_in_rank, model):
        for norms, weights in replies:
            assert norms == pytest.approx(expected, rel=1e-6)
            found = {name: torch.from_numpy(array) for name, array in weights.items()}
            assert largest_difference(found, weights_of(one)) == 0
