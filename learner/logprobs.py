"""Log-probabilities of response tokens without a [B, T, V] block of logits.

Only the hidden states that predict a response token reach the LM head, a chunk at a time; the backward pass recomputes
each chunk's logits. Peak memory of the head is one [chunk, V] block of float32. Shapes: M response tokens, H hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference of two ways to the same log-probability (nats) that rounding explains, by parameter dtype."""


def chunked_logprobs(
    hidden_MH: Tensor,
    targets_M: Tensor,
    *,
    head: Callable[[Tensor], Tensor],
    transform: Callable[[Tensor], Tensor],
    chunk_tokens: int,
) -> Tensor:
    """float32 [M]: log softmax(transform(head(hidden)))[target], exact in value and gradient.

    Args:
        hidden_MH: last hidden states of the tokens that predict the targets.
        targets_M: int64 token ids.
        head: hidden [m, H] -> logits [m, V].
        transform: what the model does to its float32 logits after the head.
        chunk_tokens: rows whose logits exist at once.
    """

    def logprobs(hidden_mH: Tensor, targets_m: Tensor) -> Tensor:
        logits_mV = transform(head(hidden_mH).float())
        return logits_mV.gather(-1, targets_m[:, None])[:, 0] - logits_mV.logsumexp(-1)

    chunks = zip(hidden_MH.split(chunk_tokens), targets_M.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled():
        return torch.cat(
            [checkpoint(logprobs, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        )
    return torch.cat([logprobs(*chunk) for chunk in chunks])


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

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model itself, adapters in place."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(self, input_ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """float32 [M]: log pi(targets | the tokens before them). Arguments as in `learner.sequences.SequenceBlock`."""
        causal_lm = self.causal_lm
        hidden_NTH = causal_lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return chunked_logprobs(
            hidden_NTH.flatten(0, 1)[positions],
            targets,
            head=causal_lm.get_output_embeddings(),
            transform=self.transform,
            chunk_tokens=self.chunk_tokens,
        )

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
