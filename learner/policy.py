"""Hugging Face folder -> the modules DeepSpeed runs, and trained weights -> Hugging Face folder."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig, LoraSection
from learner.logprobs import PolicyModule
from learner.types import LearnerError
from rewards.environment import model_folder

MAX_SHARD_SIZE = "5GB"


def load_policy(model: str, config: LearnerConfig, *, dtype: torch.dtype) -> PolicyModule:
    """The module to train: dropout off, adapters in place when the recipe asks for them, in training mode.

    Args:
        model: Hugging Face folder or hub id of a causal LM.
        config: the recipe's `learner` section.
        dtype: of the parameters.

    Raises:
        LearnerError: not a causal LM that can be trained and broadcast here; names the folder and the reason.
    """
    policy = _load(model, config, dtype=dtype)
    try:
        policy.check_head()
    except ValueError as error:
        raise LearnerError(f"policy.model: {model!r}: {error}") from error
    if config.gradient_checkpointing:
        policy.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora is not None:
        try:
            policy.model = add_adapters(policy.causal_lm, config.lora)
        except ValueError as error:
            raise LearnerError(f"learner.lora.target_modules: {error} (policy.model {model!r})") from error
    return policy.train()


def load_reference(model: str, config: LearnerConfig, *, dtype: torch.dtype) -> PolicyModule:
    """The frozen start of the policy, for full fine-tuning; with adapters the policy is its own reference."""
    return _load(model, config, dtype=dtype).requires_grad_(False).eval()


def add_adapters(causal_lm: nn.Module, lora: LoraSection, *, float32: bool = False) -> nn.Module:
    """peft's wrapper around the model, which it changes in place: the base frozen, the adapters still without effect.

    Args:
        float32: adapters in float32 over a base of any dtype. Otherwise in the base's: DeepSpeed keeps the float32
            master copy itself.

    Raises:
        ValueError: a target that is no module of the model, or of a kind that takes no adapter.
    """
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules
    if not isinstance(targets, str):
        names = [f".{name}" for name, _ in causal_lm.named_modules()]
        # peft is content when one of several targets exists
        if missing := [target for target in targets if not any(name.endswith(f".{target}") for name in names)]:
            raise ValueError(f"must be modules of the model, got {', '.join(map(repr, missing))}")
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(causal_lm, adapters, autocast_adapter_dtype=float32)


def save_policy_folder(path: Path, *, model: str, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write a Hugging Face folder that transformers and vLLM load as it is; appears whole or not at all.

    Args:
        path: replaced when it exists.
        model: where configuration, generation configuration and tokenizer come from.
        weights: Hugging Face checkpoint name -> full tensor on CPU.
        dtype: of the weights, written into the configuration.
    """
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = AutoConfig.from_pretrained(model)
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(partial)
    if (model_folder(model) / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(model).save_pretrained(partial)
    AutoTokenizer.from_pretrained(model).save_pretrained(partial)
    save_torch_state_dict(weights, partial, max_shard_size=MAX_SHARD_SIZE)
    replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def _load(model: str, config: LearnerConfig, *, dtype: torch.dtype) -> PolicyModule:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        settings = AutoConfig.from_pretrained(model)
        _disable_dropout(settings)
        causal_lm = AutoModelForCausalLM.from_pretrained(model, config=settings, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise LearnerError(f"policy.model: {model!r} does not load as a causal language model: {error}") from error
    _check_names(causal_lm, model)
    return PolicyModule(causal_lm, chunk_tokens=config.logprob_chunk_tokens)


def _disable_dropout(settings: Any) -> None:
    """Policy, reference and sampler must be the same function of the weights, in training mode too."""
    for name, value in settings.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(settings, name, 0.0)


def _check_names(causal_lm: Any, model: str) -> None:
    """Refuse models whose parameters have other names or shapes in memory than in a checkpoint (fused experts)."""
    from transformers.core_model_loading import PrefixChange

    changed = [entry for entry in causal_lm._weight_conversions if not isinstance(entry, PrefixChange)]
    if changed:
        raise LearnerError(
            f"policy.model: {model!r}: transformers renames or fuses {changed[0].source_patterns} when it loads a "
            f"{type(causal_lm).__name__}, so its parameters cannot be broadcast under their checkpoint names"
        )
