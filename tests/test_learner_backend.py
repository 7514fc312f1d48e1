"""What DeepSpeed makes of what it is told: how gradients add up, where the optimizer lies, what ZeRO-3 prefetches."""

from typing import Any

import pytest
import torch
from learner_engines import (
    LORA,
    MakeEngine,
    largest_difference,
    new_engine,
    train,
    update,
    weights_of,
)
from learner_ranks import make_batch, method, run_ranks

from learner.config import LearnerConfig
from learner.engine import LearnerEngine
from learner.examples import Batch
from learner.policy import load_policy
from learner.sequences import pack_sequences

BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "micro_batch_tokens": 1}
NO_DROPOUT = {**LORA, "dropout": 0.0}


def norms_of_repeats(engine: LearnerEngine, *, repeats: int, ranks: int = 1) -> list[float]:
    """Gradient norms of two steps whose batch is one example over and over, `repeats` times on every rank."""
    examples = make_batch(0, 1).examples * (repeats * ranks)
    batches = [Batch(step=step, examples=examples) for step in range(2)]
    return [update(engine, batch, rank=engine.rank, ranks=ranks).metrics["grad_norm"] for batch in batches]


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"zero_stage": 2, "lora": NO_DROPOUT},
        {"zero_stage": 3},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "offload_optimizer": True},
    ],
    ids=str,
)
def test_sixty_four_micro_batches_of_one_example_take_the_step_of_one(
    make_engine: MakeEngine, section: dict[str, Any]
) -> None:
    """Each has 1/64 of the gradient, exactly, and float32 adds these up exactly; bfloat16 would lose 1 in 400."""
    one, many = (make_engine(**BFLOAT16, **section) for _ in range(2))
    assert norms_of_repeats(many, repeats=64) == norms_of_repeats(one, repeats=1)
    assert largest_difference(weights_of(many), weights_of(one)) == 0


def repeat_in_rank(rank: int, model: str) -> list[tuple[list[float], dict[str, Any]]]:
    """In each of two spawned processes: norms and weights after 16 micro-batches, where stages shard gradients."""
    results = []
    for stage in (2, 3):
        engine = new_engine(model, **BFLOAT16, zero_stage=stage, ranks=2)
        norms = norms_of_repeats(engine, repeats=16, ranks=2)
        results.append((norms, {name: tensor.float().numpy() for name, tensor in weights_of(engine).items()}))
    return results


def test_micro_batches_of_two_ranks_take_the_step_of_one(make_engine: MakeEngine, model: str) -> None:
    one = make_engine(**BFLOAT16)
    expected = norms_of_repeats(one, repeats=1)
    for replies in run_ranks(2, repeat_in_rank, model):
        for norms, weights in replies:
            assert norms == pytest.approx(expected, rel=1e-6)
            found = {name: torch.from_numpy(array) for name, array in weights.items()}
            assert largest_difference(found, weights_of(one)) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("by", "stage"), [("mi-epo", 1), ("mi-epo", 2), ("mi-epo", 3), ("raco", 1), ("raco", 2)])
def test_an_offloaded_optimizer_takes_the_same_steps_bit_for_bit_and_rounds_only_the_norm_otherwise(
    make_engine: MakeEngine, by: str, stage: int, dtype: str
) -> None:
    """Also where gradients are combined for each objective. DeepSpeed adds the norm up in another order, on some
    processors with another last bit; without clipping it touches nothing."""
    here, offloaded = (
        make_engine(by=method(by), zero_stage=stage, dtype=dtype, offload_optimizer=offload, max_grad_norm=1e3)
        for offload in (False, True)
    )
    negatives = int(by == "mi-epo")
    reports = (train(engine, range(3), negatives=negatives) for engine in (offloaded, here))
    for ours, theirs in zip(*reports, strict=True):
        assert ours.metrics | {"grad_norm": 0} == theirs.metrics | {"grad_norm": 0}
        assert ours.metrics["grad_norm"] == pytest.approx(theirs.metrics["grad_norm"], rel=1e-6)
    assert largest_difference(weights_of(offloaded), weights_of(here)) == 0


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_zero_3_prefetches_from_the_second_micro_batch_on(
    make_engine: MakeEngine, lora: dict[str, Any] | None, gradient_checkpointing: bool
) -> None:
    engine = make_engine(zero_stage=3, lora=lora, gradient_checkpointing=gradient_checkpointing, micro_batch_tokens=1)
    order, loss, known = engine._engine.optimizer.parameter_offload.get_param_coordinator(), engine.method.loss, []

    def watched_loss(*arguments: Any) -> Any:
        known.append(order.is_complete_trace())  # of modules, by which it prefetches
        return loss(*arguments)

    engine.method.loss = watched_loss
    train(engine, range(2))
    assert known == [False, *[True] * 9]


def test_policy_and_reference_of_one_call_equal_those_of_two_bit_for_bit(model: str) -> None:
    """With adapter dropout on: the reference draws nothing, so the policy's masks are the same."""
    policy = load_policy(model, LearnerConfig.model_validate({"lora": {**LORA, "dropout": 0.5}}), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    block = pack_sequences([(3, 20, 21), (3, 22)], [(30, 31, 1), (32,)])
    arguments = (block.input_ids, block.positions, block.targets)
    with policy.model.disable_adapter(), torch.no_grad():  # type: ignore[operator]
        expected_reference = policy(*arguments)
    torch.manual_seed(0)
    expected = policy(*arguments)
    torch.manual_seed(0)
    actual, reference = policy(*arguments, with_reference=True)
    assert torch.equal(actual, expected) and torch.equal(reference, expected_reference)
    assert not torch.equal(actual, reference)
    assert actual.requires_grad and not reference.requires_grad
