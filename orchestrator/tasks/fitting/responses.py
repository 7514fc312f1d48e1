"""Responses of a policy in plain transformers, enough to check it and to make pairs from it; no engine is started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.tasks.fitting.trainer import seeded
from rewards.preferences import PromptRenderer

BATCH_SIZE = 512


def sample_responses(
    policy: Path,
    prompts: Sequence[str],
    preferences: np.ndarray,
    *,
    renderer: PromptRenderer,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """One response to each prompt under its preference vector [N, K], at temperature 1, special tokens left out.

    Args:
        policy: Hugging Face folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy)
    texts = [renderer.text(prompt, preference) for prompt, preference in zip(prompts, preferences, strict=True)]
    prompt_ids = tokenizer(texts)["input_ids"]
    responses: list[str] = []
    with seeded(seed), torch.inference_mode():
        for start in range(0, len(prompt_ids), BATCH_SIZE):
            responses += _sample_batch(model, tokenizer, prompt_ids[start : start + BATCH_SIZE], max_new_tokens)
    return responses


def _sample_batch(model: Any, tokenizer: Any, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    batch = tokenizer.pad({"input_ids": list(prompt_ids)}, padding_side="left", return_tensors="pt")
    tokens = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
