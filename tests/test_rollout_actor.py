"""A real vLLM engine on CPU behind a Ray actor: reproducible streams, log-probabilities, refusals."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.config import RolloutConfig
from actors.processes import stop_actors as stop
from actors.rollout import RolloutActor, start_rollouts
from actors.types import GenerationRequest, Rollout, RolloutError, StaleWeightsError
from rewards.prompts import Prompt
from tests.heads import wait_until_gone
from tests.tiny_models import make_tiny_policy

pytestmark = pytest.mark.ray

EOS = 1
# 6 MiB are 192 blocks of 32 tokens of this model: sequences enough for one batch to need more, see below.
CONFIG = RolloutConfig(max_model_len=48, max_new_tokens=12, max_num_seqs=192, stream_group=4, kv_cache_bytes=6 << 20)
CALL_S = 60


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(ray_cluster: None, policy: Path) -> Iterator[Any]:
    handles = start_rollouts(CONFIG, model=str(policy), run_name="test-rollout", seed=0)
    yield handles[0]
    stop(handles)


def make_requests(count: int, *, first_seed: int = 0, num_responses: int = 2) -> list[GenerationRequest]:
    rng = random.Random(first_seed)
    return [
        GenerationRequest(
            request_id=f"request-{first_seed + i}",
            prompt=Prompt(text="plain"),
            prompt_ids=tuple(rng.randrange(5, 100) for _ in range(rng.randrange(3, 20))),
            preference=(0.7, 0.3),
            num_responses=num_responses,
            seed=first_seed + i,
        )
        for i in range(count)
    ]


def groups(engine: Any, requests: list[GenerationRequest], version: int = 0, **options: Any) -> list[list[Rollout]]:
    import ray

    stream = engine.generate.options(num_returns="streaming").remote(requests, version, **options)
    return [ray.get(group, timeout=CALL_S) for group in stream]


def answers(engine: Any, requests: list[GenerationRequest], **options: Any) -> dict[str, list[tuple[int, ...]]]:
    rollouts = [rollout for group in groups(engine, requests, **options) for rollout in group]
    return {rollout.request.request_id: [r.token_ids for r in rollout.responses] for rollout in rollouts}


def unfinished(engine: Any) -> int:
    import ray

    def count(actor: RolloutActor) -> int:
        return actor._llm.llm_engine.get_num_unfinished_requests()

    return ray.get(engine.__ray_call__.remote(count), timeout=CALL_S)


def transformers_logprobs(policy: Path, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0]
    logprobs_TV = logits_TV.log_softmax(-1)
    return [float(logprobs_TV[len(prompt) - 1 + t, token]) for t, token in enumerate(response)]


def test_the_actor_is_found_by_name_and_starts_at_version_zero(engine: Any) -> None:
    import ray

    found: Any = ray.get_actor("test-rollout/rollout-0")
    told = ray.get(found.ready.remote(), timeout=CALL_S)
    assert (told["engine"], told["policy_version"], told["weight_backend"]) == (0, 0, "host")
    assert repr(RolloutActor(CONFIG, model="somewhere", engine=3, seed=0)) == "RolloutActor(engine=3)"


def test_an_engine_on_cpus_sees_no_gpu(engine: Any) -> None:
    import ray

    def visible(actor: RolloutActor) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(engine.__ray_call__.remote(visible), timeout=CALL_S) == ""


def test_every_request_comes_back_once_in_groups_of_the_configured_size(engine: Any) -> None:
    requests = make_requests(18)
    streamed = groups(engine, requests)
    assert [len(group) for group in streamed] == [4, 4, 4, 4, 2]
    rollouts = [rollout for group in streamed for rollout in group]
    assert {rollout.request for rollout in rollouts} == set(requests)
    assert all(len(rollout.responses) == 2 for rollout in rollouts)
    assert all(rollout.responses[0].token_ids != rollout.responses[1].token_ids for rollout in rollouts)
    assert {(rollout.min_policy_version, rollout.max_policy_version) for rollout in rollouts} == {(0, 0)}


def test_the_same_request_gives_the_same_tokens_whatever_else_is_in_the_batch(engine: Any) -> None:
    requests = make_requests(12)
    together = answers(engine, requests)
    alone = {name: tokens for request in requests for name, tokens in answers(engine, [request]).items()}
    shuffled = random.Random(1).sample(requests, len(requests))
    foreign = make_requests(30, first_seed=1000, num_responses=3)
    among_others = answers(engine, [*foreign[:15], *shuffled, *foreign[15:]])
    assert alone == together
    assert answers(engine, shuffled) == together
    assert {name: among_others[name] for name in together} == together


def test_a_batch_too_large_for_one_step_and_for_the_cache_changes_no_tokens(engine: Any) -> None:
    rng = random.Random(5)
    requests = [  # 31 tokens: a first block each when they enter, a second one in the middle of decoding
        replace(request, prompt_ids=tuple(rng.randrange(5, 100) for _ in range(31)))
        for request in make_requests(100, first_seed=2000)
    ]
    together = answers(engine, requests)
    for request in requests[::20]:
        assert answers(engine, [request]) == {request.request_id: together[request.request_id]}


def test_a_response_ends_with_the_end_token_or_at_the_length_limit(engine: Any) -> None:
    responses = [
        response
        for group in groups(engine, make_requests(60, num_responses=4))
        for rollout in group
        for response in rollout.responses
    ]
    stopped = [response for response in responses if response.finish_reason == "stop"]
    cut = [response for response in responses if response.finish_reason == "length"]
    assert len(stopped) + len(cut) == len(responses)
    assert stopped and all(response.token_ids[-1] == EOS for response in stopped)
    assert cut and all(len(r.token_ids) == CONFIG.max_new_tokens and EOS not in r.token_ids for r in cut)
    assert all("<eos>" not in response.text and response.text == response.text.strip() for response in responses)


def test_greedy_decoding_ignores_the_seed(engine: Any) -> None:
    for first, second in answers(engine, make_requests(5), temperature=0.0).values():
        assert first == second


def test_sampled_logprobs_equal_scored_ones_and_those_of_transformers(engine: Any, policy: Path) -> None:
    import ray

    rollouts = [rollout for group in groups(engine, make_requests(6)) for rollout in group]
    prompts = [rollout.request.prompt_ids for rollout in rollouts for _ in rollout.responses]
    responses = [response.token_ids for rollout in rollouts for response in rollout.responses]
    sampled = [response.logprob for rollout in rollouts for response in rollout.responses]
    for _ in range(2):  # the second time with a warm prefix cache
        per_token = ray.get(engine.token_logprobs.remote(prompts, responses), timeout=CALL_S)
        assert [len(row) for row in per_token] == [len(response) for response in responses]
        assert [sum(row) for row in per_token] == pytest.approx(sampled, abs=1e-4)
    assert ray.get(engine.logprobs.remote(prompts, responses), timeout=CALL_S) == pytest.approx(sampled, abs=1e-4)
    for prompt, response, row in zip(prompts[:4], responses[:4], per_token, strict=False):
        assert row == pytest.approx(transformers_logprobs(policy, prompt, response), abs=1e-4)


def test_logprobs_of_tempered_samples_are_those_of_the_policy_itself(engine: Any) -> None:
    import ray

    for group in groups(engine, make_requests(3), temperature=0.5):
        for rollout in group:
            scored = ray.get(
                engine.logprobs.remote([rollout.request.prompt_ids] * 2, [r.token_ids for r in rollout.responses]),
                timeout=CALL_S,
            )
            assert [response.logprob for response in rollout.responses] == pytest.approx(scored, abs=1e-4)


def test_empty_responses_and_sequences_that_fill_the_context_can_be_scored(engine: Any, policy: Path) -> None:
    import ray

    prompt, response = tuple(range(5, 41)), tuple(range(50, 62))
    assert len(prompt) + len(response) == CONFIG.max_model_len
    scored = ray.get(engine.token_logprobs.remote([prompt, prompt], [(), response]), timeout=CALL_S)
    assert scored[0] == []
    assert scored[1] == pytest.approx(transformers_logprobs(policy, prompt, response), abs=1e-4)
    assert ray.get(engine.logprobs.remote([prompt], [()]), timeout=CALL_S) == [0.0]


def test_another_policy_version_is_refused(engine: Any) -> None:
    with pytest.raises(StaleWeightsError, match="engine 0: holds policy version 0, asked for 3"):
        groups(engine, make_requests(1), version=3)


def test_an_engine_that_slept_gives_the_same_answers_under_the_same_version(engine: Any) -> None:
    import ray

    requests = make_requests(6)
    before = answers(engine, requests)
    for _ in range(2):  # the second time asleep already
        ray.get(engine.sleep.remote(), timeout=CALL_S)
    assert ray.get(engine.policy_version.remote(), timeout=CALL_S) == 0
    assert answers(engine, requests) == before
    ray.get(engine.sleep.remote(), timeout=CALL_S)
    assert ray.get(engine.logprobs.remote([(5, 6)], [(7, 8)]), timeout=CALL_S)[0] < 0


def test_a_request_the_engine_refuses_is_named_and_leaves_it_clean(engine: Any) -> None:
    import ray

    good = make_requests(3)
    too_long = GenerationRequest(
        request_id="too-long",
        prompt=Prompt(text=""),
        prompt_ids=(5,) * 48,
        preference=(1.0, 0.0),
        num_responses=1,
        seed=0,
    )
    with pytest.raises(RolloutError, match="request 'too-long'"):
        groups(engine, [*good, too_long])
    with pytest.raises(RolloutError, match="request_id must be unique"):
        groups(engine, [*good, good[0]])
    with pytest.raises(RolloutError, match="token_logprobs"):
        ray.get(engine.token_logprobs.remote([(5, 6), (5,) * 48], [(7,), (7, 8)]), timeout=CALL_S)
    without_row = r"must have an embedding for every token \(it has 100 rows\), got .* with id 100"
    with pytest.raises(RolloutError, match=f"request 'request-0': {without_row}"):
        groups(engine, [replace(good[0], prompt_ids=(5, 100)), *good[1:]])
    with pytest.raises(RolloutError, match=f"token_logprobs: {without_row}"):
        ray.get(engine.token_logprobs.remote([(5, 6)], [(7, 100, 8)]), timeout=CALL_S)
    assert unfinished(engine) == 0
    assert len(answers(engine, good)) == 3


def test_a_generation_past_its_deadline_fails_and_leaves_the_engine_clean(engine: Any) -> None:
    import ray

    def generate_in_no_time(actor: RolloutActor) -> str:
        patient = actor.config
        actor.config = patient.model_copy(update={"generate_timeout_s": 0.0})
        try:
            list(actor.generate(make_requests(3), 0))
        except RolloutError as error:
            return str(error)
        finally:
            actor.config = patient
        return "finished"

    message = ray.get(engine.__ray_call__.remote(generate_in_no_time), timeout=CALL_S)
    assert message == "generate: 6 of 6 responses unfinished after rollout.generate_timeout_s = 0 s"
    assert unfinished(engine) == 0


def test_a_consumer_that_walks_away_leaves_the_engine_clean(engine: Any) -> None:
    import ray

    def take_one_group(actor: RolloutActor) -> int:
        stream = actor.generate(make_requests(40), 0)
        size = len(next(stream))
        stream.close()  # type: ignore[attr-defined]
        return size

    assert ray.get(engine.__ray_call__.remote(take_one_group), timeout=CALL_S) == 4
    assert unfinished(engine) == 0


def test_a_model_that_cannot_be_loaded_is_one_clear_line(engine: Any, policy: Path) -> None:
    import ray

    def load_too_long(actor: RolloutActor) -> None:
        RolloutActor(CONFIG.model_copy(update={"max_model_len": 4096}), model=str(policy), engine=1, seed=0).ready()

    with pytest.raises(RolloutError) as caught:
        ray.get(engine.__ray_call__.remote(load_too_long), timeout=CALL_S)
    message = str(caught.value.cause)  # type: ignore[attr-defined]
    assert message.endswith(f"rollout.max_model_len must be at most 128, the positions of {str(policy)!r}, got 4096")
    assert "\n" not in message


def test_an_engine_on_a_gpu_meets_the_learner_by_rays_interface_and_says_what_its_gpu_cannot(
    engine: Any, policy: Path
) -> None:
    import psutil
    import ray

    def load(actor: RolloutActor) -> tuple[str, str]:
        on_gpu = RolloutActor(RolloutConfig(num_gpus=1, batch_invariant=True), model=actor.model, engine=1, seed=0)
        with pytest.raises(RolloutError) as refused:
            on_gpu.ready()
        return str(refused.value), os.environ["NCCL_SOCKET_IFNAME"]

    said, interface = ray.get(engine.__ray_call__.remote(load), timeout=CALL_S)
    assert ray.util.get_node_ip_address() in {item.address for item in psutil.net_if_addrs()[interface]}
    assert said.endswith("rollout.batch_invariant needs a GPU of compute capability 8.0 or above, got None")


def test_a_model_vllm_cannot_run_stops_the_start_and_leaves_no_actor(ray_cluster: None, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads_of_16 = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, head_dim=16
    )
    LlamaForCausalLM(heads_of_16).save_pretrained(make_tiny_policy(tmp_path / "policy"))
    with pytest.raises(RolloutError, match=r"^test-heads/rollout-0: vLLM could not load .*head_dim=16") as caught:
        start_rollouts(CONFIG, model=str(tmp_path / "policy"), run_name="test-heads", seed=0)
    assert "\n" not in str(caught.value)
    wait_until_gone("test-heads/rollout-0")


def test_engines_the_cluster_has_no_room_for_are_refused_with_what_it_has(ray_cluster: None, policy: Path) -> None:
    config = CONFIG.model_copy(update={"engines": 3, "num_cpus": 50.0, "start_timeout_s": 0.5})
    with pytest.raises(RolloutError, match=r"no room for 3 actors \(150 CPUs\) within 0.5 s; the cluster has 8 CPUs"):
        start_rollouts(config, model=str(policy), run_name="test-too-large", seed=0)
