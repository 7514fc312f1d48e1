"""Weights from a learner into a real vLLM engine: exact, complete, proved, and recoverable when they are not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.config import RolloutConfig
from actors.processes import stop_actors as stop
from actors.rollout import start_rollouts
from actors.tensors import checksum
from actors.types import GenerationRequest, Rollout, StaleWeightsError, WeightTransferError
from learner.config import LearnerConfig, LoraSection
from learner.examples import Batch, Example
from learner.group import LearnerGroup
from learner.types import WeightSyncError
from rewards.prompts import Prompt
from tests.learner_ranks import method, pair_example
from tests.tiny_models import make_tiny_policy

pytestmark = pytest.mark.ray

CALL_S = 60
CONFIG = RolloutConfig(max_model_len=48, max_new_tokens=8, max_num_seqs=16, kv_cache_bytes=16 << 20)
PROMPTS = [(5, 9, 40, 41), (60, 61, 62), (5, 9, 40, 41, 42, 43)]
RESPONSES = [(7, 8, 90, 1), (33, 99, 12), (50, 51, 52, 53, 54)]
BUCKET_BYTES = 64 << 10  # several buckets, cut inside fused layers

Bucket = tuple[dict[str, Any], list[Any]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(ray_cluster: None, policy: Path) -> Iterator[Any]:
    handles = start_rollouts(CONFIG, model=str(policy), run_name="test-broadcast", seed=0)
    yield handles[0]
    stop(handles)


def changed_model(policy: Path, *, seed: int) -> Any:
    """The policy with every parameter moved, norms included."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    return model


def model_logprobs(model: Any) -> list[float]:
    import torch

    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        rows += [float(logprobs_TV[len(prompt) - 1 + t, token]) for t, token in enumerate(response)]
    return rows


def engine_logprobs(engine: Any) -> list[float]:
    import ray

    return flat(ray.get(engine.token_logprobs.remote(PROMPTS, RESPONSES), timeout=CALL_S))


def flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in rows for value in row]


def sample(engine: Any, version: int) -> list[tuple[int, ...]]:
    """Two responses to one prompt, long enough to be cached; sampled under the weights that score them.

    Scoring never reads the prefix cache: the two differ where sampling went on from another version's keys and values.
    """
    request = GenerationRequest(
        request_id="r",
        prompt=Prompt(text="p"),
        prompt_ids=tuple(range(5, 45)),
        preference=(1.0, 0.0),
        num_responses=2,
        seed=3,
    )
    [rollout] = sampled(engine, [request], version)
    assert rollout.min_policy_version == rollout.max_policy_version == version
    responses = [response.token_ids for response in rollout.responses]
    scored = call(engine, "logprobs", [request.prompt_ids] * 2, responses)
    assert [response.logprob for response in rollout.responses] == pytest.approx(scored, abs=1e-4)
    return responses


def sampled(engine: Any, requests: list[GenerationRequest], version: int) -> list[Rollout]:
    import ray

    stream = engine.generate.options(num_returns="streaming").remote(requests, version)
    return [rollout for group in stream for rollout in ray.get(group, timeout=CALL_S)]


def tensors_as_buckets(model: Any) -> list[Bucket]:
    """One tensor per bucket: every fused layer arrives in pieces."""
    return [
        (
            {"names": [name], "dtype_names": ["float32"], "shapes": [list(parameter.shape)]},
            [parameter.detach().numpy().reshape(-1).view("uint8")],
        )
        for name, parameter in model.named_parameters()
    ]


def call(engine: Any, method: str, *args: Any) -> Any:
    import ray

    return ray.get(getattr(engine, method).remote(*args), timeout=CALL_S)


def announce(engine: Any, model: Any) -> None:
    call(engine, "weights_check", {"backend": "host", "names": [name for name, _ in model.named_parameters()]})
    call(engine, "weights_init", {})


def send(engine: Any, buckets: Sequence[Bucket]) -> None:
    import ray

    call(engine, "weights_start")
    for info, data in buckets:
        call(engine, "weights_update", info, ray.put(data))


def push(engine: Any, model: Any, version: int) -> dict[str, int]:
    announce(engine, model)
    send(engine, tensors_as_buckets(model))
    return call(engine, "weights_finish", version)


class Tampering:
    """Stands between learner and engine and flips one bit of the final norm."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def ready(self) -> dict[str, Any]:
        return call(self.engine, "ready")

    def weights_check(self, info: dict[str, Any]) -> dict[str, int]:
        return call(self.engine, "weights_check", info)

    def weights_init(self, info: dict[str, Any]) -> None:
        call(self.engine, "weights_init", info)

    def weights_start(self) -> None:
        call(self.engine, "weights_start")

    def weights_update(self, info: dict[str, Any], data: list[Any]) -> None:
        data = list(data)
        if "model.norm.weight" in info["names"]:
            index = info["names"].index("model.norm.weight")
            data[index] = data[index].copy()
            data[index][0] ^= 1
        call(self.engine, "weights_update", info, data)

    def weights_finish(self, policy_version: int) -> dict[str, int]:
        return call(self.engine, "weights_finish", policy_version)


def pairs(count: int) -> tuple[Example, ...]:
    return tuple(
        pair_example(((5 + i, 9, 40), (5 + i, 9, 41)), ((20 + i, 21, 1), (30, 31 + i, 32, 33))) for i in range(count)
    )


def test_a_push_of_single_tensors_is_exact_and_confirmed_by_hashes(engine: Any, policy: Path) -> None:

    before = sample(engine, 0)
    model = changed_model(policy, seed=1)
    checksums = push(engine, model, 1)
    assert checksums == {name: checksum(tensor) for name, tensor in model.named_parameters()}
    assert call(engine, "policy_version") == 1
    assert engine_logprobs(engine) == pytest.approx(model_logprobs(model), abs=1e-4)
    assert sample(engine, 1) != before  # the old weights' cached prefix is gone


def test_an_engine_in_the_middle_of_an_update_serves_nobody(engine: Any, policy: Path) -> None:
    model = changed_model(policy, seed=2)
    announce(engine, model)
    call(engine, "weights_start")
    assert call(engine, "policy_version") is None
    with pytest.raises(StaleWeightsError, match="holds no policy version, a weight update is open or failed"):
        sample(engine, 1)
    with pytest.raises(StaleWeightsError):
        engine_logprobs(engine)
    push(engine, model, 2)
    with pytest.raises(StaleWeightsError, match="holds policy version 2, asked for 1"):
        sample(engine, 1)


def test_an_update_with_a_tensor_missing_is_refused_and_the_next_full_push_is_exact(engine: Any, policy: Path) -> None:
    missing = "model.layers.1.self_attn.k_proj.weight"
    announce(engine, changed_model(policy, seed=3))
    send(
        engine,
        [bucket for bucket in tensors_as_buckets(changed_model(policy, seed=3)) if missing not in bucket[0]["names"]],
    )
    with pytest.raises(WeightTransferError, match=rf"weights_finish: '{missing}' did not arrive \(1 such"):
        call(engine, "weights_finish", 3)
    with pytest.raises(StaleWeightsError):
        sample(engine, 3)
    model = changed_model(policy, seed=13)
    push(engine, model, 3)
    assert engine_logprobs(engine) == pytest.approx(model_logprobs(model), abs=1e-4)


def test_part_of_the_model_left_out_of_the_announcement_is_refused(engine: Any, policy: Path) -> None:
    names = [name for name, _ in changed_model(policy, seed=1).named_parameters()]
    incomplete = [name for name in names if name != "model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(WeightTransferError, match=r"'model.layers.1.self_attn.k_proj.weight' is not announced \(1 "):
        call(engine, "weights_check", {"backend": "host", "names": incomplete})
    with pytest.raises(WeightTransferError, match="this engine receives by 'host', got 'nccl'"):
        call(engine, "weights_check", {"backend": "nccl", "names": names})


def test_a_sender_is_met_only_after_its_announcement_was_accepted(engine: Any, policy: Path) -> None:
    names = [name for name, _ in changed_model(policy, seed=1).named_parameters()]
    with pytest.raises(WeightTransferError, match="got 'nccl'"):
        call(engine, "weights_check", {"backend": "nccl", "names": names})
    with pytest.raises(WeightTransferError, match="weights_init: weights_check comes first"):
        call(engine, "weights_init", {})
    assert call(engine, "weights_check", {"backend": "host", "names": names}) == {}
    with pytest.raises(WeightTransferError, match="weights_start: weights_init comes first"):
        call(engine, "weights_start")
    call(engine, "weights_init", {})
    call(engine, "weights_start")


@pytest.mark.parametrize("stop_after", [1, 3, 9])
def test_a_sender_that_vanishes_half_way_does_no_lasting_harm(engine: Any, policy: Path, stop_after: int) -> None:
    announce(engine, changed_model(policy, seed=4))
    send(engine, tensors_as_buckets(changed_model(policy, seed=4))[:stop_after])
    model = changed_model(policy, seed=5 + stop_after)
    push(engine, model, 4)
    assert engine_logprobs(engine) == pytest.approx(model_logprobs(model), abs=1e-4)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (
            {"shapes": [[3, 64]]},
            r"model.layers.0.self_attn.k_proj.weight: float32 \[3, 64\] takes 768 bytes, got 16384",
        ),
        ({"shapes": [[32, 128]]}, "weights_update: "),
        ({"names": ["model.layers.0.self_attn.banana.weight"]}, "banana"),
    ],
)
def test_a_bucket_the_model_cannot_take_ends_the_update_but_not_the_engine(
    engine: Any, policy: Path, breakage: dict[str, Any], message: str
) -> None:
    model = changed_model(policy, seed=6)
    buckets = tensors_as_buckets(model)
    k_proj = next(
        i for i, (info, _) in enumerate(buckets) if info["names"][0].endswith("layers.0.self_attn.k_proj.weight")
    )
    announce(engine, model)
    send(engine, buckets[:k_proj])
    with pytest.raises(WeightTransferError, match=message):
        call(engine, "weights_update", {**buckets[k_proj][0], **breakage}, buckets[k_proj][1])
    with pytest.raises(WeightTransferError, match="no update is open"):
        call(engine, "weights_update", *buckets[k_proj])
    with pytest.raises(StaleWeightsError):
        sample(engine, 4)
    push(engine, model, 5)
    assert engine_logprobs(engine) == pytest.approx(model_logprobs(model), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("zero-0", {"zero_stage": 0}),
        (
            "zero-3-lora",
            {"zero_stage": 3, "ranks": 2, "lora": LoraSection(rank=4, alpha=64, dropout=0.0), "broadcast": "full"},
        ),
    ],
)
def test_after_an_update_and_a_push_engine_and_learner_agree(
    engine: Any, policy: Path, name: str, changes: dict[str, Any]
) -> None:
    import ray

    config = LearnerConfig(learning_rate=0.02, schedule="constant", num_cpus=0.5, bucket_bytes=BUCKET_BYTES, **changes)
    with LearnerGroup.start(
        config,
        model=str(policy),
        method=method(),
        total_steps=4,
        seed=0,
        run_name=f"test-broadcast-{name}",
    ) as learner:
        learner.make_room = lambda: ray.get(engine.sleep.remote(), timeout=60)  # as in a colocated run
        learner.connect([engine])
        first = learner.push_weights(0)
        start = engine_logprobs(engine)
        assert start == pytest.approx(flat(learner.token_logprobs(PROMPTS, RESPONSES)), abs=1e-4)

        for step in range(2):
            learner.update(Batch(step=step, examples=pairs(4)))
        report = learner.push_weights(1)
        assert report.manifest.policy_version == 1
        assert report.manifest.checksum != first.manifest.checksum
        after = engine_logprobs(engine)
        assert after == pytest.approx(flat(learner.token_logprobs(PROMPTS, RESPONSES)), abs=1e-4)
        assert max(abs(a - b) for a, b in zip(start, after, strict=True)) > 0.01
        with pytest.raises(StaleWeightsError, match="holds policy version 1, asked for 0"):
            sample(engine, 0)

        if not config.lora:
            tampering: Any = ray.remote(Tampering).options(num_cpus=0).remote(engine)
            learner.connect([tampering])
            with pytest.raises(WeightSyncError, match=r"engine 0: 'model.norm.weight' arrived changed: checksum 0x"):
                learner.push_weights(2)
            ray.kill(tampering)
            learner.connect([engine])
            learner.push_weights(3)
            assert engine_logprobs(engine) == pytest.approx(after, abs=1e-4)
