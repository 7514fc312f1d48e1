"""The recipe's ``rollout`` section: how many engines, how large, and how they sample."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rewards.config import Section


class RolloutConfig(Section):
    """vLLM engines inside Ray actors. One actor is one engine; on GPUs an engine may span several."""

    engines: int = Field(default=1, ge=1)
    """Number of independent engines (actors)."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs Ray reserves for each engine. A CPU engine runs on one thread whatever stands here: scale by engines."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of one engine. 0 selects the CPU build; otherwise it must equal ``tensor_parallel_size`` (a fraction is allowed at 1)."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which one engine splits the model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: float32 on CPU, bfloat16 on GPU."""
    max_model_len: int = Field(default=256, ge=2)
    """Longest prompt plus response, in tokens."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest response, in tokens, the end-of-sequence token included."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences an engine decodes at once."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling mass. Below 1 the samples no longer come from the policy whose log-probabilities are reported."""
    kv_cache_bytes: int | None = Field(default=None, ge=1 << 20)
    """Key-value cache of one engine in bytes. None: 128 MiB on CPU, what ``gpu_memory_utilization`` leaves on GPU."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of each GPU's memory the engine may take (GPU only)."""
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
                f"max_new_tokens must leave room for a prompt: {self.max_new_tokens} >= max_model_len {self.max_model_len}"
            )
        tensor_parallel = self.tensor_parallel_size
        if tensor_parallel > 1 and self.num_gpus != tensor_parallel:
            raise ValueError(
                f"num_gpus must equal tensor_parallel_size {tensor_parallel} when it exceeds 1, got {self.num_gpus:g}"
            )
        if self.num_gpus > 1 and self.num_gpus != tensor_parallel:
            raise ValueError(f"num_gpus {self.num_gpus:g} needs tensor_parallel_size {self.num_gpus:g}, got {tensor_parallel}")
        return self
