"""The learner on Ray: ranks as actors, the weight broadcast on real processes, and the death of a part of it."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engines import FakeEngine
from learner_ranks import distinct_tokens, make_batch, method, weights_of_pair
from safetensors.torch import load_file
from tiny_models import make_tiny_policy
from torch import Tensor

from learner.config import LearnerConfig
from learner.examples import Batch
from learner.group import LearnerGroup
from learner.nccl import NcclSender, _NcclClient
from learner.ranks import is_mended_by_restart
from learner.senders import Engines, compare_checksums
from learner.types import EngineLostError, LearnerError, WeightEntry, WeightSyncError
from learner.weights import BucketSource, WeightSpec
from tests.heads import wait_until_gone

pytestmark = pytest.mark.ray

PAIRS = 5  # not a multiple of two ranks
PROMPTS, RESPONSES = [(3, 20, 21), (3, 22), (3, 23, 24)], [(30, 31, 1), (32,), (33, 34)]
SETTINGS: dict[str, Any] = {
    "num_cpus": 0.5,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-2,
    "bucket_bytes": 60_000,
    "start_timeout_s": 180,
    "step_timeout_s": 60,
    "sync_timeout_s": 20,
}


class OneTensor(BucketSource):
    bucket_bytes = 1 << 10
    passes = 0

    @property
    def specs(self) -> list[WeightSpec]:
        return [WeightSpec(name="a", dtype=torch.float32, shape=(2,))]

    def buckets(self) -> Iterator[list[tuple[WeightSpec, Tensor]]]:
        self.passes += 1
        yield [(self.specs[0], torch.zeros(2))]


def start_engines(count: int) -> list[Any]:
    import ray

    handles = [ray.remote(FakeEngine).options(num_cpus=0.1).remote() for _ in range(count)]
    ray.get([handle.ready.remote() for handle in handles], timeout=120)
    return handles


def received(engine: Any) -> tuple[int | None, list[str], dict[str, Tensor]]:
    import ray

    version, calls, tensors = ray.get(engine.state.remote(), timeout=30)
    return version, calls, {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def engines(ray_cluster: None) -> list[Any]:
    return start_engines(2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_policy(tmp_path_factory.mktemp("model")))


def start_group(model: str, run_name: str, **section: Any) -> LearnerGroup:
    config = LearnerConfig.model_validate({**SETTINGS, **section})
    return LearnerGroup.start(
        config,
        model=model,
        method=method(beta_w=0.1),
        total_steps=10,
        seed=0,
        run_name=run_name,
    )


@pytest.fixture(scope="module")
def two_ranks(ray_cluster: None, model: str) -> Iterator[LearnerGroup]:
    """ZeRO-3 over two actors; the last test of this module that uses it kills one of them."""
    with start_group(model, "two", ranks=2, zero_stage=3) as group:
        yield group


def test_ranks_are_named_actors_and_tell_what_they_run(two_ranks: LearnerGroup) -> None:
    import ray

    assert [info.rank for info in two_ranks.info] == [0, 1]
    assert ray.get_actor("two/learner-1") == two_ranks._ranks.workers[1]


def test_ranks_on_cpus_see_no_gpu(two_ranks: LearnerGroup) -> None:
    import ray

    def visible(worker: Any) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    asked = [worker.__ray_call__.remote(visible) for worker in two_ranks._ranks.workers]
    assert ray.get(asked, timeout=60) == ["", ""]


def test_log_probabilities_come_back_in_order_from_both_ranks(two_ranks: LearnerGroup, model: str) -> None:
    from transformers import AutoModelForCausalLM

    causal_lm = AutoModelForCausalLM.from_pretrained(model)
    for reference in (False, True):
        actual = two_ranks.token_logprobs(PROMPTS, RESPONSES, reference=reference)
        for prompt, response, logprobs in zip(PROMPTS, RESPONSES, actual, strict=True):
            logits = causal_lm(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
            assert logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_what_is_said_of_the_likeliest_tokens_comes_back_in_order_from_both_ranks(two_ranks: LearnerGroup) -> None:
    together = two_ranks.top_tokens(PROMPTS, RESPONSES)
    alone = [two_ranks.top_tokens([prompt], [answer])[0] for prompt, answer in zip(PROMPTS, RESPONSES, strict=True)]
    assert len(set(together)) == len(PROMPTS)
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_who_shares_the_gpus_makes_room_before_the_ranks_compute(two_ranks: LearnerGroup) -> None:
    def refuse() -> None:
        raise TimeoutError("an engine does not sleep")

    try:
        two_ranks.make_room = refuse
        with pytest.raises(TimeoutError, match="does not sleep"):
            two_ranks.update(make_batch(0, PAIRS))
        with pytest.raises(TimeoutError, match="does not sleep"):
            two_ranks.token_logprobs(PROMPTS, RESPONSES)
    finally:
        two_ranks.make_room = lambda: None


def test_first_update_has_the_mean_loss_over_all_pairs(two_ranks: LearnerGroup) -> None:
    """At the start every log-ratio is 0, so a pair costs (a1 + a2) log 2 + log 2 whatever its rank."""
    batch = make_batch(0, PAIRS)
    report = two_ranks.update_async(batch).result(timeout=60)
    mass = sum(sum(weights_of_pair(example)) for example in batch.examples) / PAIRS
    assert report.metrics["loss"] == pytest.approx((mass + 1) * math.log(2), abs=1e-5)
    assert report.learner_tokens == distinct_tokens(batch)


def test_a_push_from_zero_3_delivers_the_exported_weights_to_every_engine(
    two_ranks: LearnerGroup, engines: list[Any], tmp_path: Path
) -> None:
    two_ranks.connect(engines)
    first = two_ranks.push_weights(7)
    two_ranks.update(make_batch(1, PAIRS))
    second = two_ranks.push_weights(8)
    two_ranks.save_policy(tmp_path / "policy")
    exported = load_file(tmp_path / "policy" / "model.safetensors")
    for engine in engines:
        version, calls, tensors = received(engine)
        assert version == 8 and same(tensors, exported)
        assert calls[0] == "start" and calls[-1] == "finish" and calls.count("update") > 3
    manifest = second.manifest
    assert manifest.policy_version == 8 and {entry.name for entry in manifest.entries} == set(exported)
    assert manifest.total_bytes == sum(tensor.numel() * 4 for tensor in exported.values())
    assert manifest.checksum != first.manifest.checksum and second.seconds > 0


def test_a_changed_byte_is_found_and_named_and_the_next_push_repairs_it(
    two_ranks: LearnerGroup, engines: list[Any]
) -> None:
    import ray

    two_ranks.connect(engines)
    ray.get(engines[1].misbehave.remote("corrupt"))
    with pytest.raises(
        WeightSyncError, match=r"rollout engine 1: 'model\.norm\.weight' arrived changed: .*0x.*sent 0x"
    ):
        two_ranks.push_weights(9)
    ray.get(engines[1].misbehave.remote(None))
    assert two_ranks.push_weights(9).manifest.policy_version == 9


def test_an_engine_that_fails_or_dies_in_a_push_leaves_the_ranks_in_step(
    two_ranks: LearnerGroup, engines: list[Any]
) -> None:
    import ray

    engines = [*start_engines(1), engines[1]]
    two_ranks.connect(engines)
    ray.get(engines[0].misbehave.remote("refuse"))
    with pytest.raises(WeightSyncError, match=r"rollout engine 0: weights_update failed: .*no room for this bucket"):
        two_ranks.push_weights(10)
    ray.get(engines[0].misbehave.remote("break"))
    with pytest.raises(EngineLostError, match="rollout engine 0: weights_update failed: could not wake up") as lost:
        two_ranks.push_weights(10)
    assert not lost.value.died  # its process is still to be ended
    ray.kill(engines[0])
    with pytest.raises(WeightSyncError, match="rollout engine 0: weights_start failed"):
        two_ranks.push_weights(10)
    two_ranks.connect(engines[1:])
    two_ranks.push_weights(10)
    assert received(engines[1])[0] == 10


def test_a_checkpoint_goes_through_the_group(two_ranks: LearnerGroup, tmp_path: Path) -> None:
    two_ranks.save_checkpoint(tmp_path)
    expected = two_ranks.update(make_batch(2, PAIRS))
    two_ranks.load_checkpoint(tmp_path)
    assert two_ranks.update(make_batch(2, PAIRS)) == expected


def test_a_dead_rank_is_named_and_the_group_refuses_more_work(two_ranks: LearnerGroup) -> None:
    import ray

    started = time.monotonic()
    ray.kill(two_ranks._ranks.workers[1])
    with pytest.raises(LearnerError, match="update of step 3: the process of rank 1 died"):
        two_ranks.update(make_batch(3, PAIRS))
    assert time.monotonic() - started < 30
    with pytest.raises(LearnerError, match=r"the learner cannot go on: .*rank 1 died"):
        two_ranks.push_weights(11)


def test_one_rank_with_adapters_sends_merged_weights_when_asked_and_meets_the_deadline(
    engines: list[Any], model: str, tmp_path: Path
) -> None:
    import ray

    lora = {"rank": 4, "alpha": 8, "dropout": 0}
    with start_group(model, "lora", lora=lora, broadcast="full", sync_timeout_s=8) as group:
        engines = engines[1:]
        group.connect(engines)
        group.push_weights(0)
        assert same(received(engines[0])[2], load_file(Path(model) / "model.safetensors"))
        group.update(make_batch(0, PAIRS))
        group.push_weights(1)
        group.save_policy(tmp_path / "policy")
        exported = load_file(tmp_path / "policy" / "model.safetensors")
        assert same(received(engines[0])[2], exported)
        assert not same(exported, load_file(Path(model) / "model.safetensors"))
        ray.get(engines[0].misbehave.remote("sleep"))
        with pytest.raises(WeightSyncError, match="rollout engine 0: weights_update not done within 8 s"):
            group.push_weights(2)
        with pytest.raises(LearnerError, match="step 0: an update needs an example, got none"):
            group.update(Batch(step=0, examples=()))
    with pytest.raises(LearnerError, match="the group is closed"):
        group.update(make_batch(1, PAIRS))
    group.close()


def test_what_cannot_start_says_why_and_leaves_nothing_behind(ray_cluster: None, model: str, tmp_path: Path) -> None:

    with pytest.raises(
        LearnerError, match=r"large/learner: no room for 1 actor \(1000 CPUs\) within 0.5 s; the cluster has 8 CPUs"
    ):
        start_group(model, "large", num_cpus=1000, start_timeout_s=0.5)
    with pytest.raises(LearnerError, match=f"policy.model: no configuration could be loaded from '{tmp_path}'"):
        start_group(str(tmp_path), "missing")
    wait_until_gone("missing/learner-0")


def test_engines_of_two_gpus_each_get_ranks_of_their_own_in_the_nccl_group(engines: list[Any]) -> None:
    import ray

    client = _NcclClient(Engines(engines, timeout_s=120), workers_per_engine=2)
    client.init_weight_transfer_engine(
        {"master_address": "192.0.2.1", "master_port": 5, "rank_offset": 1, "world_size": 5}
    )
    infos = ray.get([engine.rendezvous_info.remote() for engine in engines], timeout=120)
    assert [info["rank_offset"] for info in infos] == [1, 3]
    assert all(info["world_size"] == 5 and info["master_port"] == 5 for info in infos)


def test_an_engine_that_refuses_ends_a_meeting_by_nccl_at_once_with_its_own_words(ray_cluster: None) -> None:
    import ray

    willing, refusing = start_engines(2)
    ray.get(refusing.misbehave.remote("refuse"))
    source = OneTensor()
    sender = NcclSender(source, rank=0, timeout_s=60, workers_per_engine=1)
    said = "rollout engine 1: weights_check failed: the announced base is not here"
    with pytest.raises(WeightSyncError, match=said):
        sender.connect([willing, refusing])
    assert ray.get([each.rendezvous_info.remote() for each in (willing, refusing)], timeout=60) == [None, None]
    with pytest.raises(WeightSyncError, match="connect must come before the first send"):
        sender.send(1)
    assert source.passes == 1  # rank 0 gathers as the others do


def test_a_rank_whose_gpu_failed_or_whose_peer_is_silent_is_mended_by_a_restart_and_a_defect_is_not() -> None:
    assert is_mended_by_restart(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert is_mended_by_restart(RuntimeError("[gloo] Connection closed by peer"))
    assert not is_mended_by_restart(torch.OutOfMemoryError("CUDA out of memory"))  # it would be again
    assert not is_mended_by_restart(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_checksums_are_compared_name_by_name() -> None:
    sent = [WeightEntry(name=name, dtype="float32", shape=(1,), checksum=7) for name in ("a", "b")]
    compare_checksums(0, sent, {"a": 7, "b": 7})
    with pytest.raises(WeightSyncError, match="engine 2: 'b' was sent but not received"):
        compare_checksums(2, sent, {"a": 7})
    with pytest.raises(WeightSyncError, match="engine 0: 'c' was received but not sent"):
        compare_checksums(0, sent, {"a": 7, "b": 7, "c": 7})
    with pytest.raises(
        WeightSyncError, match="'a' arrived changed: checksum 0x0000000000000008, sent 0x0000000000000007"
    ):
        compare_checksums(0, sent, {"a": 8, "b": 7})
