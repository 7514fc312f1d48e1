"""A learner's update at the size of a model: tokens a second, the share of the card's peak that it uses, its memory."""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.bench.check.models import SIZES, make_model
from orchestrator.estimate.shapes import Shape

STEPS = 4
"""The first is not counted: allocator and kernels warm up in it."""

W_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one update works on.

    Example: Load(examples=8, micro_batch_tokens=8192, prompt=256, response=256, lora=True)
    """

    examples: int
    """Prompts, each with two responses under w+ and one w-."""
    micro_batch_tokens: int
    prompt: int
    """Tokens, of which the last `W_TOKENS` say w."""
    response: int
    """Tokens."""
    lora: bool

    @property
    def response_tokens(self) -> int:
        """Of all passes of the update."""
        return self.examples * 2 * 2 * self.response


LOADS = {
    "tiny": Load(examples=2, micro_batch_tokens=4096, prompt=8, response=8, lora=True),
    "135M": Load(examples=32, micro_batch_tokens=16384, prompt=128, response=128, lora=False),
    "1.7B": Load(examples=16, micro_batch_tokens=16384, prompt=256, response=256, lora=True),
    "8B": Load(examples=8, micro_batch_tokens=8192, prompt=256, response=256, lora=True),
}


def measure_updates(name: str, folder: Path, *, cpu: bool, peak_flops: float | None) -> dict[str, Any]:
    """Figures of the learner as it is shipped, alone on its device, on random tokens.

    Args:
        name: of `SIZES` and `LOADS`.
        folder: where the model is or will be made.
        peak_flops: of the card; None: not known, and no share is told.
    """
    import torch

    from learner.config import LearnerConfig, LoraSection
    from learner.dealing import deal
    from learner.engine import LearnerEngine
    from learner.methods.mi_epo import MiEpo

    shape, load = SIZES[name], LOADS[name]
    make_model(shape, folder, device="cpu" if cpu else "cuda")
    alone()
    if not cpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = LearnerConfig(
        num_gpus=0 if cpu else 1,
        lora=LoraSection(rank=64) if load.lora else None,
        gradient_checkpointing=load.lora,
        micro_batch_tokens=load.micro_batch_tokens,
    )
    engine = LearnerEngine(
        config,
        model=str(folder),
        method=MiEpo.Config(),
        total_steps=STEPS,
        seed=0,
    )
    seconds, tokens = [], 0
    for step in range(STEPS):
        batch = _batch(step, load, shape.vocabulary)
        started = time.perf_counter()
        [share] = deal(
            batch,
            ranks=1,
            micro_batch_tokens=config.micro_batch_tokens,
            longest_shared=engine.policy.longest_shared,
        )
        tokens = engine.update(share).learner_tokens  # waits for the device to tell its norm
        seconds.append(time.perf_counter() - started)
    engine.close()
    best = min(seconds[1:])
    flops = useful_flops(shape, load, tokens)
    return {
        "model": name,
        "lora": load.lora,
        "update_seconds": best,
        "tokens_per_second": tokens / best,
        "useful_tflops": flops / best / 1e12,
        "mfu": None if peak_flops is None else flops / best / peak_flops,
        "peak_memory_gib": None if cpu else torch.cuda.max_memory_allocated() / 2**30,
    }


def useful_flops(shape: Shape, load: Load, tokens: int) -> float:
    """Products and sums that an update of `tokens` cannot do without; recomputed activations do not count.

    A token costs 2 operations for each parameter that it passes: forward in the policy and in the reference, backward
    to the activations, and for full fine-tuning backward to the weights. The head sees response tokens alone.
    Attention adds 4 x heads x head size for each layer and earlier token, half of the sequence on average.
    """
    passes = 3 if load.lora else 4
    attention = 4 * shape.layers * shape.heads * shape.head_dim * (load.prompt + load.response) / 2
    parameters = tokens * shape.layer_parameters + load.response_tokens * shape.head_parameters
    # Forward in policy and reference, and backward twice a forward: to queries, keys and values alike.
    return passes * 2 * parameters + 4 * tokens * attention


def _batch(step: int, load: Load, vocabulary: int) -> Any:
    from learner.examples import Batch, Example
    from learner.methods.mo_odpo import PairTargets

    rng = random.Random(step)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    def prompts() -> tuple[tuple[int, ...], ...]:
        before_w = tokens(load.prompt - W_TOKENS)
        return before_w + tokens(W_TOKENS), before_w + tokens(W_TOKENS)

    targets = PairTargets(responses=((0, 1),), weight=np.array([np.diag([0.7, 0.3])]))
    return Batch(
        step=step,
        examples=tuple(
            Example(
                prompts=prompts(),
                responses=(tokens(load.response), tokens(load.response)),
                targets=targets,
                preference=(0.7, 0.3),
            )
            for _ in range(load.examples)
        ),
    )


def alone() -> None:
    """This process is the only rank."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
