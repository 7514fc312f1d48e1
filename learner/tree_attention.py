"""Attention among trees of sequences: the mask, and whether a model keeps to it.

Shapes: R rows of T tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from learner.sequences import pack_sequences

PROBE = ((3, 5, 7, 2), (3, 5, 8, 6)), ((9, 4, 11), (9, 10, 4))
"""Prompts and responses, every prompt with every response."""
NEARNESS = {torch.float32: 0.01, torch.bfloat16: 0.25}
"""Rounding moves log-probabilities by far less than this share of what they differ by without the mask."""


def tree_mask(ends: Tensor, dtype: torch.dtype) -> Tensor:
    """[R, 1, T, T], added to the scores of query q and key k: 0 where q sees k, else the least number of `dtype`.

    Args:
        ends: int64 [R, T], see `learner.sequences.SequenceBlock`.
    """
    at = torch.arange(ends.shape[1], device=ends.device)
    sees = (at[None, None, :] <= at[None, :, None]) & (at[None, :, None] < ends[:, None, :])
    mask = torch.zeros(sees.shape, dtype=dtype, device=ends.device).masked_fill(~sees, torch.finfo(dtype).min)
    return mask[:, None]


@torch.no_grad()
def longest_shared(policy: Callable[..., Tensor], causal_lm: Any) -> int:
    """Longest sequence, in tokens, that a model computes in a tree as it would alone; 0: it does not.

    Found by trying: a model may know no such mask (state spaces, linear attention), or take positions from the mask.
    Call it before ZeRO-3 partitions the parameters.

    Args:
        policy: `learner.policy.PolicyModule` around the model.
        causal_lm: the model.
    """
    embedding = causal_lm.get_input_embeddings().weight
    prompts, responses = ([tuple(token % len(embedding) for token in each) for each in part] for part in PROBE)
    asked = [prompt for prompt in prompts for _ in responses], responses * len(prompts)
    alone = policy(*pack_sequences(*asked, device=embedding.device).tensors())
    block = pack_sequences(*asked, together=[list(range(len(asked[0])))], device=embedding.device)
    try:
        in_tree = policy(*block.tensors())
    except Exception:  # whatever a model does that was not made for such a mask
        return 0
    unmasked = policy(block.input_ids, block.positions, block.targets)
    kept = (in_tree - alone).abs().max() <= NEARNESS[embedding.dtype] * (unmasked - alone).abs().max()
    return attention_window(causal_lm.config) if kept else 0


def attention_window(config: Any) -> int:
    """Tokens over which every layer looks back, by transformers' configuration."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    return sys.maxsize if window is None or set(kinds) == {"full_attention"} else int(window)
