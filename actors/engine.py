"""How a vLLM engine is built for sampling: in process, quiet, with weights that can be replaced; what it is asked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from actors.config import RolloutConfig
from rewards.environment import process_environment, whole_threads
from rewards.model_config import max_positions
from rewards.model_files import ModelError
from rewards.pretrained import load_config, load_model

if TYPE_CHECKING:
    from vllm import SamplingParams

Backend = Literal["host", "nccl"]
"""How weights reach an engine: through the Ray object store, or by NCCL broadcast."""

# The smallest that vLLM's CPU attention takes. Responses to one prompt share its full blocks; few fill vLLM's own 128.
CPU_BLOCK_TOKENS = 32
# Filled with zeros at the start, so all of it counts; above this, sequences wait for their turn instead.
MAX_CPU_KV_CACHE_BYTES = 1 << 30


def weight_backend(config: RolloutConfig) -> Backend:
    """How an engine of this recipe receives: not by NCCL where it shares its GPU, because NCCL refuses that."""
    return "nccl" if config.num_gpus and not config.colocated else "host"


def engine_environment(config: RolloutConfig, model: str) -> dict[str, str]:
    """Environment of an engine's process; must be set before vLLM is imported there."""
    threads = None if config.num_gpus else whole_threads(config.num_cpus, config.threads)
    env = process_environment(model, threads=threads, num_gpus=config.num_gpus) | {
        # In process: starts three times faster and takes a third of the memory of the three-process engine.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if config.batch_invariant and config.num_gpus:
        env["VLLM_BATCH_INVARIANT"] = "1"  # vLLM's kernels read it when they are imported
    if config.enforce_eager and not config.num_gpus:
        # Symptom: the first batch takes 8 s longer, 40 s where no compiler cache is warm. Cause: vLLM compiles the
        # kernel that ranks log-probabilities in eager mode too. Delete when it stops, or has a switch for it.
        env["TORCH_COMPILE_DISABLE"] = "1"
    return env


def load_engine(config: RolloutConfig, *, model: str, seed: int) -> Any:
    """A synchronous ``vllm.LLM`` that draws from the policy as it is: no top-k, no penalties of the model's own.

    Raises:
        ModelError: what vLLM would not say, or not in the recipe's words; also whatever vLLM raises.
    """
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, and it would override kv_cache_memory_bytes
    from vllm import LLM
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform

    from actors.weights import VLLM_BACKENDS, WORKER_EXTENSION

    if config.batch_invariant and config.num_gpus and not current_platform.has_device_capability(80):
        got = current_platform.get_device_capability()
        raise ValueError(f"rollout.batch_invariant needs a GPU of compute capability 8.0 or above, got {got}")
    hf_config = check_model(config, model)
    if config.num_gpus:
        platform: dict[str, Any] = {
            "dtype": "bfloat16" if config.dtype == "auto" else config.dtype,
            "kv_cache_memory_bytes": config.kv_cache_bytes,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enable_sleep_mode": config.colocated,
        }
    else:
        dtype = "float32" if config.dtype == "auto" else config.dtype
        _import_architectures(hf_config.architectures or ())
        platform = {
            "dtype": dtype,
            "kv_cache_memory_bytes": config.kv_cache_bytes or cpu_kv_cache_bytes(config, hf_config, dtype),
            "block_size": CPU_BLOCK_TOKENS,
            # Symptom: a seeded request whose prompt is split over two steps ends the engine with "CPU Generator does
            # not use offset". Cause: vLLM rewinds the seed's generator by its CUDA offset after the first part. Delete
            # when vLLM can rewind a CPU generator.
            "enable_chunked_prefill": False,
        }
    return LLM(
        model=model,
        trust_remote_code=False,
        seed=seed,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        enforce_eager=config.enforce_eager,
        enable_prefix_caching=True,
        logprobs_mode="raw_logprobs",
        tensor_parallel_size=config.tensor_parallel_size,
        # Named, because inside a Ray placement group vLLM would otherwise start its workers as Ray actors.
        distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else "uni",
        worker_extension_cls=WORKER_EXTENSION,
        weight_transfer_config=WeightTransferConfig(backend=VLLM_BACKENDS[weight_backend(config)]),
        disable_log_stats=False,  # `actors.metrics` passes them on
        use_tqdm_on_load=False,
        **platform,
    )


def check_model(config: RolloutConfig, model: str) -> Any:
    """transformers' configuration of the model, after its names, shapes and positions have been compared.

    Raises:
        ModelError: the folder lacks weights (vLLM fuses matrices, and fills what is missing of one with whatever is in
            memory), or has fewer positions than `max_model_len`.
    """
    hf_config = load_config(model)
    positions = max_positions(hf_config.to_dict())
    if positions is not None and config.max_model_len > positions:
        raise ModelError(
            f"rollout.max_model_len must be at most {positions}, the positions of {model!r}, got {config.max_model_len}"
        )
    load_model("AutoModelForCausalLM", model, head="whole", device_map="meta")
    return hf_config


def sampling_params(config: RolloutConfig, *, seed: int, temperature: float | None) -> SamplingParams:
    """Of one response by the recipe, whole when it comes; its text is decoded elsewhere.

    Args:
        temperature: instead of the recipe's; 0 is greedy.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    asked = config if temperature is None else config.model_copy(update={"temperature": temperature})
    return SamplingParams(
        **asked.values(),
        max_tokens=config.max_new_tokens,
        seed=seed,
        logprobs=0,  # the sampled token's own
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params(last_token: int) -> SamplingParams:
    """Of one forced token, with its log-probability and those of the prompt."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        allowed_token_ids=[last_token],
        prompt_logprobs=0,
        logprobs=0,
        detokenize=False,
    )


def cpu_kv_cache_bytes(config: RolloutConfig, hf_config: Any, dtype: str) -> int:
    """Keys and values of ``max_num_seqs`` full sequences in vLLM's blocks, between two sequences and 1 GiB."""
    text = hf_config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = {"float32": 4, "bfloat16": 2}[dtype]
    block = CPU_BLOCK_TOKENS * 2 * text.num_hidden_layers * heads * head_dim * width
    sequence = block * math.ceil(config.max_model_len / CPU_BLOCK_TOKENS)
    wanted = block + sequence * config.max_num_seqs  # one block is vLLM's own
    return max(block + 2 * sequence, min(wanted, MAX_CPU_KV_CACHE_BYTES))


def _import_architectures(architectures: Sequence[str]) -> None:
    """Import the model's class here, in the process that will use it.

    vLLM otherwise inspects an architecture it sees for the first time in a subprocess that imports vLLM again, about
    ten seconds. On GPU that subprocess keeps CUDA uninitialised in the parent, so leave it alone there.
    """
    from vllm import ModelRegistry

    for architecture in architectures:
        load = getattr(ModelRegistry.models.get(architecture), "load_model_cls", None)
        if load is not None:
            ModelRegistry.register_model(architecture, load())
