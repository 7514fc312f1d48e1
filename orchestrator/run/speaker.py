"""A steered policy that answers: plain transformers, the renderer and the sampling of training, no Ray and no vLLM."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from orchestrator.errors import BadInput
from orchestrator.inputs import check_renderer, load_tokenizer
from orchestrator.recipes import check
from orchestrator.run.merges import load_merges
from orchestrator.run.steering import FILE_NAME, PolicyConditioning, find_experts, find_policy, load_conditioning
from rewards.environment import is_unicode
from rewards.model_files import ModelError
from rewards.pretrained import load_model
from rewards.prompts import Prompt, as_prompt
from rewards.sampling import read_token_ids
from rewards.simplex import evaluation_grid
from rewards.vocabulary import first_without_row, without_row

PLAIN_PROMPT = "hello"
"""On which a policy's prompts are tried before the policy loads."""


class Speaker:
    """The policy of a run, or of a folder. A rewarded soup answers with the average of its experts for each w.

    Args:
        target: a run directory or a policy's folder.
        seed: of what is drawn, over all answers.
        sampling: values of `rewards.sampling.SamplingSection` in place of those of training.

    Raises:
        BadInput: no policy trained by mi-epo, or a sampling value that cannot be.
    """

    def __init__(self, target: Path, *, seed: int = 0, sampling: Mapping[str, float] | None = None) -> None:
        self._experts = find_experts(target)
        self._merges = load_merges(target) if self._experts else None
        self._policy = self._experts[0] if self._experts else find_policy(target)
        trained = load_conditioning(self._policy)
        self.conditioning = check(
            PolicyConditioning.model_validate, trained.model_dump() | dict(sampling or {}), "generate"
        )
        self.objectives: tuple[str, ...] = trained.objectives
        self._mixed: tuple[float, ...] | None = None
        disable_progress_bar()
        tokenizer = load_tokenizer(str(self._policy.resolve()))
        self._renderer = self.conditioning.renderer(tokenizer)
        check_renderer(self._renderer, [PLAIN_PROMPT], where=f"{self._policy / FILE_NAME}: preferences.conditioning")
        token_ids = _token_ids(self._policy, tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            loaded = load_model("AutoModelForCausalLM", str(self._policy), head="whole", dtype="auto")
        except ModelError as error:
            raise BadInput(str(error)) from None
        self._model = loaded.to(device).eval()
        self._model.generation_config = GenerationConfig(**self.conditioning.generation_config(token_ids))
        self._rows = self._model.get_input_embeddings().num_embeddings
        torch.manual_seed(seed)

    def answers(self, prompt: Prompt | str, preference: Sequence[float], count: int = 1) -> list[str]:
        """`count` answers under w [K], in the order of `objectives`.

        Raises:
            BadInput: the prompt cannot be asked; says why.
        """
        ids = self._ask(prompt, preference)
        if self._experts and self._mixed != (weights := tuple(map(float, preference))):
            if self._merges is None:
                _mix(self._model, self._experts, weights)
            else:
                coefficients = self._merges.of(list(weights))
                parts = [*self._experts, Path(self._merges.start)]
                _mix(self._model, parts, [*coefficients, 1 - sum(coefficients)])
            self._mixed = weights
        inputs = torch.tensor([ids] * count, device=self._model.device)
        with torch.no_grad():
            output = self._model.generate(inputs, attention_mask=torch.ones_like(inputs))
        texts: list[str] = self._renderer.tokenizer.batch_decode(output[:, len(ids) :], skip_special_tokens=True)
        return texts

    def _ask(self, prompt: Prompt | str, preference: Sequence[float]) -> list[int]:
        text = as_prompt(prompt).plain
        if not is_unicode(text):
            raise BadInput(f"prompt: must be whole characters in UTF-8, got {text!r:.100}")
        check_renderer(self._renderer, [prompt], where="prompt")
        ids = self._renderer.token_ids(prompt, preference)
        if (beyond := first_without_row(ids, self._rows)) is not None:
            token = self._renderer.tokenizer.decode([beyond])
            raise BadInput(f"prompt: the policy {without_row(token, beyond, self._rows)}")
        limit = getattr(self._model.config, "max_position_embeddings", None)
        room = self.conditioning.max_new_tokens
        if limit is not None and len(ids) + room > limit:
            raise BadInput(f"prompt: must leave {room} of the policy's {limit} tokens for the answer, got {len(ids)}")
        return ids


def sweep(speaker: Speaker, prompt: str, count: int = 1) -> Iterator[tuple[str, list[str]]]:
    """(w in words, answers) under every vector of the evaluation grid."""
    for weights in evaluation_grid(len(speaker.objectives)):
        yield in_words(speaker.objectives, weights), speaker.answers(prompt, weights.tolist(), count)


def in_words(objectives: Sequence[str], weights: Sequence[float] | np.ndarray) -> str:
    """Example: "helpfulness 0.7, harmlessness 0.3" """
    return ", ".join(f"{name} {weight:.2g}" for name, weight in zip(objectives, weights, strict=True))


def _token_ids(policy: Path, tokenizer: Any) -> dict[str, Any]:
    """Where an answer ends, as engines see it: at the tokenizer's end token and at the model's own."""
    try:
        own = read_token_ids(policy).get("eos_token_id")
    except ModelError as error:
        raise BadInput(str(error)) from None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {"eos_token_id": sorted(ends) or None, "pad_token_id": pad}


def _mix(model: Any, parts: Sequence[Path], weights: Sequence[float]) -> None:
    """Give the model the parts' average weights."""
    from learner.soup import SoupSource

    source = SoupSource(parts, bucket_bytes=256 << 20)
    source.mix(weights)
    for bucket in source.buckets():
        model.load_state_dict({spec.name: tensor for spec, tensor in bucket}, strict=False)
