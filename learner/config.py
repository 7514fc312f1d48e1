"""The recipe's `learner` section: how DeepSpeed runs the update; what is updated is the method's. No torch here."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewards.section import Dtype, NodeLabels, Section

AdamBetas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class LoraSection(Section):
    """Low-rank adapters (peft), merged into the weights on export."""

    rank: int = Field(default=64, ge=1)
    """Inner dimension of an adapter."""
    alpha: float = Field(default=128, gt=0)
    """Adapter output is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of an adapter's inputs that are left out in an update."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names that get an adapter; `all-linear` is every linear layer but the LM head."""

    @model_validator(mode="after")
    def _targets_are_named(self) -> LoraSection:
        if not self.target_modules:
            raise ValueError("target_modules must name at least one module, got an empty list")
        return self


class LearnerConfig(Section):
    """One DeepSpeed rank per Ray actor. Defaults are the paper's where it gives them."""

    ranks: int = Field(default=1, ge=1)
    """Data-parallel ranks (actors)."""
    num_cpus: float = Field(default=0.75, gt=0)
    """CPUs Ray reserves for each rank."""
    threads: int | None = Field(default=None, ge=1)
    """Of one rank on CPU. Null: `num_cpus` of them, at least one; and where engines and learner take turns (a local
    cluster, no batch sampled ahead), what both reserve together, shared among the ranks."""
    num_gpus: float = Field(default=0, ge=0, le=1)
    """GPUs of each rank: 0 for CPU, 1 for one GPU, a fraction to share one with other actors, which get back what torch
    caches after each pass."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Only on nodes that carry all of these Ray labels. Ranks are packed on as few nodes as possible."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over the ranks (1 optimizer state, 2 and gradients, 3 and parameters)."""
    offload_optimizer: bool = False
    """Float32 master weights and Adam moments in host memory, where `num_cpus` cores take the step: frees 12 bytes of
    GPU memory for each trained parameter, 16 under stage 3 (its gradient too). Needs a `zero_stage` of 1 or more."""
    dtype: Dtype = "auto"
    """`auto`: float32 on CPU, bfloat16 on GPU. `native`: bfloat16 where this machine's processor multiplies it. Under
    bfloat16 the optimizer steps a float32 master copy, micro-batches add up in float32, and ZeRO stages 0 and 1 run as
    2."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Of Adam, at its highest."""
    adam_betas: AdamBetas = (0.9, 0.999)
    """Decay of the running means of gradient and squared gradient."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled (AdamW)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    final_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of the run, as a share of `learning_rate` (ignored by `constant`)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients, over all parameters, are scaled down to it."""

    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one forward-backward pass on one rank, padding counted. A prompt is not divided: its responses
    pass together, once under each vector that the method needs (mi-epo: 2 responses under w+ and under each w-)."""
    lora: LoraSection | None = None
    """Train low-rank adapters instead of all weights."""
    prefix_sharing: Literal["auto", "off"] = "auto"
    """`auto`: what the responses of a prompt begin with alike, under all its vectors, passes once: the same
    log-probabilities and gradients up to rounding. A model that cannot is found out when it is loaded, and told."""
    gradient_checkpointing: bool = False
    """Recompute the layers' activations in the backward pass: less memory, about a third more time."""
    logprob_chunk_tokens: int = Field(default=1024, ge=1)
    """Response tokens whose [tokens, vocabulary] logits exist at once."""

    broadcast: Literal["auto", "full"] = "auto"
    """What travels to the engines. `full`: every weight. `auto`: the same without `lora`; with it the adapters alone,
    and each engine merges them into its own copy of the base, which is compared with the learner's by checksums."""
    bucket_bytes: int = Field(default=32 << 20, ge=1 << 10)
    """Size of one bucket of a weight broadcast; a larger tensor travels alone."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Longest wait for resources, and again for the ranks to load."""
    step_timeout_s: float = Field(default=1800, gt=0)
    """Longest update, checkpoint or log-probability pass, and longest wait of a rank for the others."""
    sync_timeout_s: float = Field(default=600, gt=0)
    """Longest weight broadcast."""

    @model_validator(mode="after")
    def _offload_has_a_stage(self) -> LearnerConfig:
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("zero_stage must be at least 1 with offload_optimizer, got 0")
        return self


def learning_rate(config: LearnerConfig, *, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of a run of `total_steps`.

    Step s of W warm-up steps gets (s + 1) / W of the full rate. Then the rate goes from full to
    `final_learning_rate_ratio` of it along a cosine or a line, which it would reach at step `total_steps`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    falling = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}[config.schedule]
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1.0 - floor) * falling)
