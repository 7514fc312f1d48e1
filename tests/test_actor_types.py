"""Records and section of the rollout room: what they refuse, how seeds are derived, what they do not import."""

import pickle
import subprocess
import sys

import pytest
from pydantic import ValidationError

from actors.config import RolloutConfig
from actors.engine import cpu_kv_cache_bytes, engine_environment, weight_backend
from actors.types import GenerationRequest, Response, Rollout, StaleWeightsError, WeightTransferError, response_seed


def request(**changes) -> GenerationRequest:
    fields = {
        "request_id": "step0/0",
        "prompt": "hello",
        "prompt_ids": (1, 2),
        "preference": (1.0, 0.0),
        "num_responses": 2,
        "seed": 7,
    }
    return GenerationRequest(**{**fields, **changes})


def test_response_seeds_are_stable_distinct_and_fit_a_signed_64_bit_integer() -> None:
    seeds = {response_seed(seed, index) for seed in range(200) for index in range(4)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert response_seed(7, 0) == 5751740483655848561


@pytest.mark.parametrize(
    ("num_gpus", "colocated", "backend"),
    [(0, False, "host"), (0, True, "host"), (1, False, "nccl"), (0.5, True, "host")],
)
def test_weights_travel_by_nccl_only_between_gpus_that_nobody_shares(num_gpus, colocated, backend) -> None:
    assert weight_backend(RolloutConfig(num_gpus=num_gpus, colocated=colocated)) == backend


@pytest.mark.parametrize(("num_gpus", "asked", "told"), [(1, True, "1"), (1, False, None), (0, True, None)])
def test_vllm_is_told_to_be_batch_invariant_only_on_gpus(num_gpus, asked, told) -> None:
    environment = engine_environment(RolloutConfig(num_gpus=num_gpus, batch_invariant=asked), "org/model")
    assert environment.get("VLLM_BATCH_INVARIANT") == told


def test_a_request_without_prompt_or_responses_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'step0/0': prompt_ids must not be empty"):
        request(prompt_ids=())
    with pytest.raises(ValueError, match="num_responses must be >= 1, got 0"):
        request(num_responses=0)


def test_records_and_errors_survive_pickling() -> None:
    answer = Response(token_ids=(5, 1), text="t5", finish_reason="stop", logprobs=(-1.5,))
    rollout = Rollout(request=request(), responses=(answer,), min_policy_version=3, max_policy_version=3)
    assert pickle.loads(pickle.dumps(rollout)) == rollout
    for error in (StaleWeightsError("engine 0: holds 3"), WeightTransferError("no update is open")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 256}, "max_new_tokens must be smaller than max_model_len = 256, got 256"),
        ({"tensor_parallel_size": 2}, "num_gpus must be 1 when tensor_parallel_size = 2, got 0"),
        ({"num_gpus": 2}, "num_gpus"),
        ({"engines": 0}, "engines"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": 4}, "max_tokens"),
    ],
)
def test_a_rollout_section_that_cannot_work_is_refused(changes, message) -> None:
    with pytest.raises(ValidationError, match=message):
        RolloutConfig(**changes)


def test_sections_and_records_import_no_torch_ray_or_vllm() -> None:
    code = (
        "import actors.config, actors.types, actors.rollout, actors.reward, sys;"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_cpu_cache_holds_every_sequence_in_whole_blocks_up_to_a_gibibyte() -> None:
    class Llama:
        num_hidden_layers, num_attention_heads, num_key_value_heads, hidden_size, head_dim = 2, 4, 2, 64, None

        def get_text_config(self) -> "Llama":
            return self

    block = 32 * 2 * 2 * 2 * 16 * 4  # tokens, keys and values, layers, heads, head size, bytes
    small = RolloutConfig(max_model_len=40, max_num_seqs=3)
    assert cpu_kv_cache_bytes(small, Llama(), "float32") == block * (1 + 2 * 3)
    assert cpu_kv_cache_bytes(small, Llama(), "bfloat16") == block * (1 + 2 * 3) // 2
    many = RolloutConfig(max_model_len=4096, max_num_seqs=4096)
    assert cpu_kv_cache_bytes(many, Llama(), "float32") == 1 << 30
