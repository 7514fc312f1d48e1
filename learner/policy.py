"""Hugging Face folder -> the modules DeepSpeed runs, and trained weights -> Hugging Face folder.

The modules give log-probabilities of response tokens without a [B, T, V] block of logits: only the hidden states that
predict a response token reach the LM head, a chunk at a time; where they are many, the backward pass recomputes each
chunk's logits, and peak memory of the head is one [chunk, V] block of float32. Shapes: M response tokens, H hidden.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from learner.config import LearnerConfig, LoraSection
from learner.tree_attention import longest_shared, tree_mask
from learner.types import LearnerError
from rewards.environment import model_folder, one_line
from rewards.model_files import ModelError
from rewards.pretrained import load_config, load_model, load_tokenizer

MAX_SHARD_SIZE = "5GB"
KEPT_LOGITS_BYTES = 64 << 20
"""Logits that take more are made again in the backward pass, which costs as much as making them did."""
TOP_TOKENS = 10
"""Likeliest next tokens that over-optimisation shows in (arXiv 2410.11677)."""
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference of two ways to the same log-probability (nats) that rounding explains, by parameter dtype."""


def chunked_logprobs(
    hidden_MH: Tensor,
    targets_M: Tensor,
    *,
    head: Callable[[Tensor], Tensor],
    transform: Callable[[Tensor], Tensor],
    chunk_tokens: int,
    recompute: bool,
) -> Tensor:
    """float32 [M]: log softmax(transform(head(hidden)))[target], exact in value and gradient.

    Args:
        hidden_MH: last hidden states of the tokens that predict the targets.
        targets_M: int64 token ids.
        head: hidden [m, H] -> logits [m, V].
        transform: what the model does to its float32 logits after the head.
        chunk_tokens: rows whose logits exist at once.
        recompute: the backward pass makes the logits again; otherwise those of all rows are kept for it.
    """

    def logprobs(hidden_mH: Tensor, targets_m: Tensor) -> Tensor:
        return -cross_entropy(transform(head(hidden_mH).float()), targets_m, reduction="none")

    chunks = zip(hidden_MH.split(chunk_tokens), targets_M.split(chunk_tokens), strict=True)
    if recompute and torch.is_grad_enabled():
        return torch.cat(
            [checkpoint(logprobs, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        )
    return torch.cat([logprobs(*chunk) for chunk in chunks])


def top_of(logits_MV: Tensor) -> Tensor:
    """float32 [M, 2] of the `TOP_TOKENS` likeliest tokens of each row: - sum p log p in nats, and sum p."""
    logp_MK = logits_MV.log_softmax(-1).topk(min(TOP_TOKENS, logits_MV.shape[-1])).values
    p_MK = logp_MK.exp()
    return torch.stack([-(p_MK * logp_MK).sum(-1), p_MK.sum(-1)], -1)


def logit_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What a model of this configuration does to its logits after the LM head, in the order the models do it.

    Knows `logits_scaling` (divides; Granite), `logit_scale` (multiplies; Cohere) and `final_logit_softcapping`
    (cap * tanh(logits / cap); Gemma). `PolicyModule.check_head` finds models that do anything else.
    """
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        if divisor is not None:
            logits = logits / divisor
        if isinstance(factor, int | float):
            logits = logits * factor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return transform


class PolicyModule(nn.Module):
    """A causal language model seen as: token ids in, log-probabilities of chosen tokens out.

    The whole computation happens inside `forward`, so that DeepSpeed's hooks gather what ZeRO-3 has partitioned.

    Args:
        model: a Hugging Face causal LM, or peft's wrapper of one.
        chunk_tokens: see `chunked_logprobs`.
    """

    def __init__(self, model: nn.Module, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.transform = logit_transform(self.causal_lm.config)
        self.longest_shared = 0
        """Tokens of the longest sequence that may pass in a tree of sequences; 0 until `load_policy` has tried."""

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model itself, adapters in place."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        depths: Tensor | None = None,
        ends: Tensor | None = None,
        *,
        with_reference: bool = False,
        top: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """float32 [M]: log pi(targets | the tokens before them). Arguments as in `learner.sequences.SequenceBlock`.

        Args:
            with_reference: give a second [M] beside it, from the model without its adapters, which has no gradient.
                Both come from one call because ZeRO-3 prefetches by the order of modules in the last one, and forgets
                it where a call goes another way.
            top: give `top_of` [M, 2] instead, of the tokens that could have stood there.
        """
        inputs: dict[str, Tensor] = {"input_ids": input_ids}
        if ends is not None and depths is not None:
            dtype = self.causal_lm.get_input_embeddings().weight.dtype
            inputs |= {"position_ids": depths, "attention_mask": tree_mask(ends, dtype)}
        if top:
            return self._top(inputs, positions)
        if not with_reference:
            return self._logprobs(inputs, positions, targets)
        with torch.no_grad(), self.model.disable_adapter():  # type: ignore[operator]
            reference = self._logprobs(inputs, positions, targets)
        return self._logprobs(inputs, positions, targets), reference

    def _predicting(self, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        """[M, H] last hidden states at these places of the flattened rows."""
        hidden_RTH: Tensor = self.causal_lm.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden_RTH.flatten(0, 1)[positions]

    def _logprobs(self, inputs: dict[str, Tensor], positions: Tensor, targets: Tensor) -> Tensor:
        causal_lm = self.causal_lm
        return chunked_logprobs(
            self._predicting(inputs, positions),
            targets,
            head=causal_lm.get_output_embeddings(),
            transform=self.transform,
            chunk_tokens=self.chunk_tokens,
            recompute=4 * len(targets) * causal_lm.config.get_text_config().vocab_size > KEPT_LOGITS_BYTES,
        )

    def _top(self, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        head = self.causal_lm.get_output_embeddings()
        chunks = self._predicting(inputs, positions).split(self.chunk_tokens)
        return torch.cat([top_of(self.transform(head(hidden_mH).float())) for hidden_mH in chunks])

    @torch.no_grad()
    def check_head(self) -> None:
        """Compare with the model's own logits on a few tokens; call it before ZeRO-3 partitions the parameters.

        Raises:
            ValueError: this model does something to its logits that is not known here.
        """
        embedding = self.causal_lm.get_input_embeddings().weight
        input_ids = torch.arange(1, 7, device=embedding.device)[None] % len(embedding)
        expected_MV = self.causal_lm(input_ids=input_ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        expected_M = expected_MV.gather(-1, input_ids[0, 1:, None])[:, 0]
        actual_M = self(input_ids, torch.arange(5, device=input_ids.device), input_ids[0, 1:])
        difference = float((actual_M - expected_M).abs().max())
        if not difference <= PROBE_TOLERANCE[embedding.dtype]:
            raise ValueError(
                f"{type(self.causal_lm).__name__}: log-probabilities from its LM head differ from its own by "
                f"{difference:.3g} nats; it changes its logits in a way that is not supported"
            )


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
    if config.prefix_sharing == "auto":
        policy.longest_shared = longest_shared(policy, policy.causal_lm)
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
        model: where configuration, generation configuration (as it is) and tokenizer come from.
        weights: Hugging Face checkpoint name -> full tensor on CPU.
        dtype: of the weights, written into the configuration.
    """
    from huggingface_hub import save_torch_state_dict

    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save_settings(partial, model=model, dtype=dtype)
    save_torch_state_dict(weights, partial, max_shard_size=MAX_SHARD_SIZE)
    replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def check_settings(model: str, *, dtype: torch.dtype) -> None:
    """Write all of a policy folder but the weights, to nowhere: its rules are met before the first step.

    Raises:
        LearnerError: transformers would not save what it loads; names the folder and the rule.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _save_settings(Path(folder), model=model, dtype=dtype)
        except Exception as error:  # transformers raises many kinds
            raise LearnerError(f"policy.model: {model!r} could not be saved: {one_line(error)}") from error


def _save_settings(folder: Path, *, model: str, dtype: torch.dtype) -> None:
    config = load_config(model)
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    # Copied, because transformers saves only what keeps its rules, and loads what breaks them.
    generation = model_folder(model) / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    load_tokenizer(model).save_pretrained(folder)


def _load(model: str, config: LearnerConfig, *, dtype: torch.dtype) -> PolicyModule:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        settings = load_config(model)
        _disable_dropout(settings)
        causal_lm = load_model("AutoModelForCausalLM", model, head="whole", config=settings, dtype=dtype)
    except ModelError as error:
        raise LearnerError(f"policy.model: {error}") from error
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
