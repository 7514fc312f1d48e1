"""An engine of the product against vLLM alone, on the same requests in the same engine; sleep and wake."""

import os
import time
from pathlib import Path
from typing import Any

from actors.config import RolloutConfig
from actors.types import GenerationRequest
from rewards.prompts import Prompt

ROUNDS = 3
"""Of each, in turn; the fastest counts. The first also captures and warms up."""


def measure_rollouts(
    name: str, folder: Path, *, cpu: bool, prompts: int, response_tokens: int, graphs: bool
) -> dict[str, Any]:
    """Tokens a second of `vllm.LLM.generate` and of the rollout actor, both with a seed for every response.

    Args:
        name: what the figures call the model.
        folder: holds it.
        prompts: each answered twice.
        graphs: CUDA graphs and compilation as vLLM has them by default.
    """
    config = RolloutConfig(
        num_gpus=0 if cpu else 1,
        colocated=not cpu,  # the engine can sleep then
        max_model_len=128 + response_tokens,
        max_new_tokens=response_tokens,
        max_num_seqs=min(256, 2 * prompts),
        gpu_memory_utilization=0.8,
        enforce_eager=not graphs,
    )
    import ray

    from actors.engine import engine_environment, sampling_params
    from actors.rollout import RolloutActor
    from actors.types import response_seed

    os.environ |= engine_environment(config, str(folder))
    # The actor tells Ray its figures, and would look for a cluster of somebody else's.
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    actor = RolloutActor(config, model=str(folder), engine=0, seed=0)
    started = time.monotonic()
    actor.ready()
    figures: dict[str, Any] = {"model": name, "graphs": graphs, "load_seconds": time.monotonic() - started}
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt=Prompt(text=""),
            prompt_ids=tuple(3 + (index * 7 + place * 13) % 400 for place in range(64)),
            preference=(0.5, 0.5),
            num_responses=2,
            seed=index,
        )
        for index in range(prompts)
    ]
    asked = [(request, response_seed(request.seed, j)) for request in requests for j in range(request.num_responses)]
    inputs = [{"prompt_token_ids": list(request.prompt_ids)} for request, _ in asked]
    sampling = [sampling_params(config, seed=seed, temperature=None) for _, seed in asked]

    def alone() -> int:
        outputs = actor.llm.generate(inputs, sampling, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def shipped() -> int:
        groups = list(actor.generate(requests, 0))
        return sum(len(response.token_ids) for group in groups for rollout in group for response in rollout.responses)

    speeds: dict[str, list[float]] = {"vllm": [], "product": []}
    for _ in range(ROUNDS):
        for side, work in (("vllm", alone), ("product", shipped)):
            actor.llm.reset_prefix_cache()
            started = time.monotonic()
            tokens = work()
            speeds[side].append(tokens / (time.monotonic() - started))
    figures |= {f"{side}_tokens_per_second": max(found) for side, found in speeds.items()}
    figures["ratio"] = figures["product_tokens_per_second"] / figures["vllm_tokens_per_second"]
    if not cpu:
        import torch

        before = torch.cuda.mem_get_info()[0]
        started = time.monotonic()
        actor.sleep()
        figures["sleep_seconds"] = time.monotonic() - started
        figures["freed_gib"] = (torch.cuda.mem_get_info()[0] - before) / 2**30
        started = time.monotonic()
        actor.token_logprobs([], [])  # whatever is asked of it wakes it up
        figures["wake_seconds"] = time.monotonic() - started
    return figures
