"""Adapters that travel alone: merged by the engine exactly as by the learner, over a base that is proved the same."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.adapters import AdapterMerger, AdapterPlan
from actors.config import RolloutConfig
from actors.processes import stop_actors as stop
from actors.rollout import start_rollouts
from actors.tensors import merge_adapter
from actors.types import WeightTransferError
from learner.config import LearnerConfig, LoraSection
from learner.examples import Batch, Example
from learner.group import LearnerGroup
from learner.policy import load_policy
from learner.types import WeightSyncError
from learner.weights import AdapterSource, WeightSource
from tests.learner_ranks import method, pair_example
from tests.test_weight_broadcast import PROMPTS, RESPONSES, call, changed_model, engine_logprobs, flat, push
from tests.tiny_models import make_tiny_policy

CPU = torch.device("cpu")
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LORA = LoraSection(rank=4, alpha=6, dropout=0.0, target_modules=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def adapted_policy(folder: Path, dtype: torch.dtype) -> Any:
    policy = load_policy(str(folder), LearnerConfig(lora=LORA), dtype=dtype)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=noise))
    return policy


def sent(source: WeightSource | AdapterSource) -> list[tuple[str, Tensor]]:
    return [(spec.name, tensor.clone()) for bucket in source.buckets() for spec, tensor in bucket]


def merger_for(folder: Path, source: AdapterSource) -> AdapterMerger:
    plan = AdapterPlan(**source.announcement["adapter"])
    return AdapterMerger(str(folder), plan=plan, fused=FUSED, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_merges_to_the_learners_own_weights_bit_for_bit(folder: Path, dtype: torch.dtype) -> None:
    policy = adapted_policy(folder, dtype)
    expected = dict(sent(WeightSource(policy, bucket_bytes=1 << 20)))
    source = AdapterSource(policy, bucket_bytes=1 << 10)
    merged = dict(merger_for(folder, source).merged(sent(source)))
    assert merged.keys() == {
        name for name in expected if ".q_proj" in name or ".k_proj" in name or ".v_proj" in name
    } | {name for name in expected if ".down_proj" in name}
    assert all(tensor.dtype == dtype and torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    base = dict(sent(source._base))
    changed = [name for name in merged if not torch.equal(merged[name], base[name])]
    assert len(changed) == 2 * len(LORA.target_modules)  # in each of two layers; the keys come along unchanged


def test_the_halves_may_come_in_any_order_and_a_fused_layer_comes_out_once_and_whole(folder: Path) -> None:
    source = AdapterSource(adapted_policy(folder, torch.float32), bucket_bytes=1 << 20)
    expected = dict(merger_for(folder, source).merged(sent(source)))
    shuffled = sent(source)
    random.Random(1).shuffle(shuffled)
    merger = merger_for(folder, source)
    groups = [list(merger.merged([item])) for item in shuffled]
    out = [name for group in groups for name, _ in group]
    assert sorted(out) == sorted(expected) and len(out) == len(set(out))
    assert {len(group) for group in groups} == {0, 1, 3}
    assert all(torch.equal(tensor, expected[name]) for group in groups for name, tensor in group)


def test_what_an_interrupted_update_left_is_forgotten(folder: Path) -> None:
    source = AdapterSource(adapted_policy(folder, torch.float32), bucket_bytes=1 << 20)
    merger = merger_for(folder, source)
    *all_but_one, last = sent(source)
    list(merger.merged(all_but_one))
    merger.forget()
    assert not list(merger.merged([last]))


def test_biases_of_a_fused_layer_come_from_the_base(tmp_path: Path) -> None:
    base = {
        f"layer.{part}_proj.{kind}": torch.randn(4, 3) if kind == "weight" else torch.randn(4)
        for part in "qkv"
        for kind in ("weight", "bias")
    }
    save_file(base, tmp_path / "model.safetensors")
    plan = AdapterPlan(base=dict.fromkeys(base, "float32"), scaling={"layer.k_proj": 0.5}, transposed=())
    merger = AdapterMerger(str(tmp_path), plan=plan, fused=FUSED, device=CPU)
    halves = [("layer.k_proj.lora_A.weight", torch.ones(1, 3)), ("layer.k_proj.lora_B.weight", torch.ones(4, 1))]
    merged = dict(merger.merged(halves))
    assert merged.keys() == base.keys()
    assert torch.equal(merged.pop("layer.k_proj.weight"), base["layer.k_proj.weight"] + 0.5)
    assert all(torch.equal(tensor, base[name]) for name, tensor in merged.items())


class Pinning:
    """Stands for `Tensor.pin_memory`, which needs a GPU: a copy, and what was copied."""

    def __init__(self) -> None:
        self.pinned: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor.clone())
        return self.pinned[-1]


def pinning_merger(folder: Path, source: AdapterSource, pin: Pinning, *, free_bytes: int) -> AdapterMerger:
    plan = AdapterPlan(**source.announcement["adapter"])
    return AdapterMerger(str(folder), plan=plan, fused=FUSED, device=CPU, pin=pin, free_bytes=free_bytes)


# in each of two layers q, k and v of [64, 64] and down of [64, 192], in bfloat16
ADAPTED_BYTES = 2 * 2 * (3 * 64 * 64 + 64 * 192)


def test_the_base_of_adapted_layers_is_pinned_at_its_first_read_and_not_read_again(folder: Path) -> None:
    source = AdapterSource(adapted_policy(folder, torch.bfloat16), bucket_bytes=1 << 20)
    pin = Pinning()
    merger = pinning_merger(folder, source, pin, free_bytes=4 * ADAPTED_BYTES)
    assert merger.base_checksums == source.base_checksums()  # reads it all, and keeps what updates need
    assert sum(tensor.nbytes for tensor in pin.pinned) == ADAPTED_BYTES
    first = dict(merger.merged(sent(source)))
    expected = dict(merger_for(folder, source).merged(sent(source)))
    assert first.keys() == expected.keys() and all(torch.equal(first[name], expected[name]) for name in expected)
    for tensor in pin.pinned:
        tensor.zero_()
    assert not dict(merger.merged(sent(source)))["model.layers.0.self_attn.k_proj.weight"].any()
    assert len(pin.pinned) == 2 * 4


def test_a_base_too_large_for_the_host_stays_in_its_files_and_that_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = AdapterSource(adapted_policy(folder, torch.bfloat16), bucket_bytes=1 << 20)
    pin = Pinning()
    merger = pinning_merger(folder, source, pin, free_bytes=4 * ADAPTED_BYTES - 1)
    for _ in range(2):
        assert len(list(merger.merged(sent(source)))) == 2 * 4
    assert pin.pinned == []
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the base under the adapters is read from its files at every update"
    ]


def test_a_transposed_matrix_gets_a_transposed_change() -> None:
    lora_A, lora_B = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [10.0]])
    merged = merge_adapter(torch.ones(2, 3), lora_A, lora_B, scaling=2.0, transposed=False)
    assert merged.tolist() == [[3.0, 5.0, 7.0], [21.0, 41.0, 61.0]]
    assert torch.equal(merge_adapter(torch.ones(3, 2), lora_A, lora_B, scaling=2.0, transposed=True), merged.T)


def test_the_bases_of_two_sides_are_compared_in_the_learners_dtype(folder: Path, tmp_path: Path) -> None:
    source = AdapterSource(adapted_policy(folder, torch.bfloat16), bucket_bytes=1 << 20)
    assert merger_for(folder, source).base_checksums == source.base_checksums()
    other = make_tiny_policy(tmp_path / "other", seed=1)
    theirs = merger_for(other, source).base_checksums
    assert all(theirs[name] != value for name, value in source.base_checksums().items() if "norm" not in name)


def test_weights_that_the_engines_files_do_not_name_are_refused(folder: Path) -> None:
    plan = AdapterPlan(base={"model.banana.weight": "float32"}, scaling={}, transposed=())
    with pytest.raises(WeightTransferError, match=r"'model.banana.weight' does not stand in .*learner.broadcast: full"):
        AdapterMerger(str(folder), plan=plan, fused=FUSED, device=CPU)


@pytest.fixture(scope="module")
def engine(ray_cluster: None, folder: Path) -> Iterator[Any]:
    config = RolloutConfig(max_model_len=48, max_new_tokens=8, max_num_seqs=16, kv_cache_bytes=16 << 20)
    handles = start_rollouts(config, model=str(folder), run_name="test-adapters", seed=0)
    yield handles[0]
    stop(handles)


def start_learner(model: Path, name: str, **changes: Any) -> LearnerGroup:
    config = LearnerConfig(
        learning_rate=0.02, schedule="constant", num_cpus=0.5, bucket_bytes=1 << 12, lora=LORA, **changes
    )
    return LearnerGroup.start(
        config,
        model=str(model),
        method=method(),
        total_steps=4,
        seed=0,
        run_name=f"test-adapters-{name}",
    )


def some_pairs() -> tuple[Example, ...]:
    return tuple(pair_example((prompt, (*prompt, 44)), (RESPONSES[0], RESPONSES[1])) for prompt in PROMPTS)


@pytest.mark.ray
def test_after_an_update_only_adapters_travel_and_engine_and_learner_agree(engine: Any, folder: Path) -> None:
    with start_learner(folder, "zero-3", zero_stage=3, ranks=2) as learner:
        learner.connect([engine])
        learner.push_weights(0)
        start = engine_logprobs(engine)
        assert start == pytest.approx(flat(learner.token_logprobs(PROMPTS, RESPONSES)), abs=1e-4)
        for step in range(2):
            learner.update(Batch(step=step, examples=some_pairs()))
        report = learner.push_weights(1)
        after = engine_logprobs(engine)
        assert after == pytest.approx(flat(learner.token_logprobs(PROMPTS, RESPONSES)), abs=1e-4)
        assert max(abs(a - b) for a, b in zip(start, after, strict=True)) > 0.01
        assert all(".lora_" in entry.name for entry in report.manifest.entries)
        # per layer q and v of [64, 64] and down of [64, 192], rank 4, float32
        assert report.manifest.total_bytes == 2 * 4 * 4 * (2 * (64 + 64) + (64 + 192))


@pytest.mark.ray
def test_a_learner_over_another_base_is_refused_by_name(engine: Any, folder: Path, tmp_path: Path) -> None:
    with start_learner(make_tiny_policy(tmp_path / "other", seed=1), "other") as learner:
        said = r"rollout engine 0: 'model.embed_tokens.weight' of its policy.model is not the learner's: checksum 0x"
        with pytest.raises(WeightSyncError, match=said):
            learner.connect([engine])


@pytest.mark.ray
def test_an_engine_that_was_given_other_weights_takes_no_adapters(engine: Any, folder: Path) -> None:
    source = AdapterSource(adapted_policy(folder, torch.float32), bucket_bytes=1 << 20)
    info = {**source.announcement, "backend": "host"}
    assert call(engine, "weights_check", info) == source.base_checksums()
    push(engine, changed_model(folder, seed=1), 2)
    with pytest.raises(WeightTransferError, match="was given other weights than its model's own base"):
        call(engine, "weights_check", info)
