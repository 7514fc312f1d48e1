"""The recipe's ``rollout`` section: how many engines, how large, and how they sample."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rewards.sampling import SamplingSection
from rewards.section import Dtype, NodeLabels

Placement = Literal["pack", "spread"]


class RolloutConfig(SamplingSection):
    """vLLM engines inside Ray actors. One actor is one engine; on GPUs an engine may span several."""

    engines: int = Field(default=1, ge=1)
    """Number of independent engines (actors)."""
    colocated: bool = False
    """Engine i shares the GPU of learner rank i, and sleeps (its weights in host memory, its cache dropped) while the
    learner computes. The pair reserves both their `num_gpus`, more than half of a GPU and at most one; judges may have
    the rest. On CPU nothing is freed."""
    num_cpus: float = Field(default=0.75, ge=0)
    """CPUs Ray reserves for one engine; by default an engine, a rank and five judges fit two cores."""
    threads: int | None = Field(default=None, ge=1)
    """Of one engine on CPU. Null: `num_cpus` of them, at least one; and where engines and learner take turns (a local
    cluster, no batch sampled ahead), what both reserve together, shared among the engines. More than there are free
    cores slow an engine down five times and more: on a busy machine prefer more engines of one thread."""
    num_gpus: float = Field(default=0, ge=0, le=1)
    """GPUs per tensor-parallel worker: 0 selects the CPU build, 1 a whole GPU, a fraction a shared one."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Only on nodes that carry all of these Ray labels."""
    placement: Placement = "pack"
    """Engines on as few nodes as possible, or on as many; an engine is always on one."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which one engine splits the model (above 1 only with ``num_gpus`` 1)."""
    dtype: Dtype = "auto"
    """``auto``: float32 on CPU, bfloat16 on GPU. ``native``: bfloat16 where this machine's processor multiplies it."""
    max_model_len: int = Field(default=256, ge=2)
    """Longest prompt plus response, in tokens."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences an engine decodes at once."""
    kv_cache_bytes: int | None = Field(default=None, ge=1 << 20)
    """Key-value cache of one engine in bytes. None: on CPU room for ``max_num_seqs`` full sequences, at most 1 GiB; on
    GPU what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of each GPU's memory the engine may take (GPU only). It must leave room for all that others keep there:
    with ``colocated`` a learner rank's policy, reference and optimizer state, and judges that have the rest of the GPU.
    `mi-epo plan` says how much that is."""
    batch_invariant: bool = False
    """Same request, same tokens on GPU too, whatever else is in the batch; on CPU it is so without this, and nothing
    changes. vLLM calls it beta. It needs compute capability 8.0 and takes any dtype; attention is FlashAttention,
    Triton or FlexAttention, as vLLM chooses. Price: no product and no attention is split over its inner dimension (slow
    where few and long sequences decode), FlashAttention 2 where 4 would run, products in Triton's kernels on Ampere,
    one NCCL channel inside an engine of several GPUs."""
    enforce_eager: bool = True
    """Skip graph capture and compilation: a much faster start, and on small models about the same speed."""
    stream_group: int = Field(default=16, ge=1)
    """Finished requests per group handed on while others are still being decoded."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Longest wait for resources, and again for the engines to load."""
    generate_timeout_s: float = Field(default=600, gt=0)
    """Longest duration of one ``generate`` call."""

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> RolloutConfig:
        if self.max_new_tokens >= self.max_model_len:
            raise ValueError(
                f"max_new_tokens must be smaller than max_model_len = {self.max_model_len}, got {self.max_new_tokens}"
            )
        if self.tensor_parallel_size > 1 and self.num_gpus != 1:
            raise ValueError(
                f"num_gpus must be 1 when tensor_parallel_size = {self.tensor_parallel_size}, got {self.num_gpus:g}"
            )
        return self
