"""What DeepSpeed is told: device, parameter dtype, process group and configuration."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from learner.config import LearnerConfig
from learner.types import LearnerError

PERSISTENT_ELEMENTS = 10_000
"""ZeRO-3 keeps smaller parameters (norms, biases) whole on every rank: gathering them costs more than holding them."""


def choose_device(config: LearnerConfig) -> torch.device:
    """The GPU of this rank (LOCAL_RANK among those it can see), or the CPU when the recipe gives it none.

    Raises:
        LearnerError: a GPU was asked for and CUDA is not available.
    """
    if not config.num_gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LearnerError(f"learner.num_gpus = {config.num_gpus:g}, but CUDA is not available to this rank")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def choose_dtype(config: LearnerConfig, device: torch.device) -> torch.dtype:
    """Of the parameters; under bfloat16 DeepSpeed keeps a float32 master copy for the optimizer."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def join_group(config: LearnerConfig, address: str, port: int, *, rank: int, listener: socket.socket | None) -> None:
    """Join the ranks' process group; `start_deepspeed` does it otherwise, by MASTER_ADDR and MASTER_PORT.

    Args:
        listener: on rank 0, a socket that listens there already, so that the port can neither be taken meanwhile nor be
            open on every interface, as a port that torch opens would be.
    """
    timeout = timedelta(seconds=config.start_timeout_s)
    store = dist.TCPStore(
        address,
        port,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=listener.detach() if listener is not None else None,
    )
    dist.init_process_group(
        "nccl" if config.num_gpus else "gloo",
        store=store,
        rank=rank,
        world_size=config.ranks,
        timeout=timedelta(seconds=config.step_timeout_s),
    )


def start_deepspeed(device: torch.device, *, timeout_s: float) -> Any:
    """Import DeepSpeed for this device and join the process group unless this process is in one; returns the module.

    Args:
        timeout_s: longest wait of a rank for the others in any collective.
    """
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at import; otherwise it looks for GPUs and warns
    import deepspeed

    # Otherwise, when the group starts on CPU, every operator is probed with the compiler, and one that only inference
    # uses is built for half a minute or more.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.utils.logger.setLevel("ERROR")
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else "nccl", timeout=timedelta(seconds=timeout_s), verbose=False
    )
    return deepspeed


def deepspeed_config(config: LearnerConfig, *, dtype: torch.dtype, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's own configuration for this section.

    Args:
        max_grad_norm: 0 leaves clipping to the caller.
    """
    # Below stage 2 DeepSpeed's bfloat16 optimizers hide their float32 copy, or sum gradients in bfloat16.
    stage = max(config.zero_stage, 2) if dtype == torch.bfloat16 else config.zero_stage
    return {
        # Neither number means anything here: the engine is told which micro-batch of a step is the last.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            "offload_optimizer": {
                "device": "cpu" if config.offload_optimizer else "none",
                "pin_memory": config.num_gpus > 0,
            },
        },
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
