"""Scores from a Hugging Face sequence classifier."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.judge_sections import HuggingFaceScorerConfig
from rewards.model_files import ModelError
from rewards.pretrained import load_model, load_tokenizer, positions_of
from rewards.reading import Reader, padding_id, tell_padding
from rewards.scorers import NO_COLUMNS, Columns, ScorerError, check_aligned
from rewards.vocabulary import first_without_row, without_row

logger = logging.getLogger(__name__)


class ClassifierScorer:
    """Logits of a sequence classifier, read from the recipe's template with the model's own tokenizer.

    Inputs longer than the model takes lose the start of the prompt, so that the response stays whole; ``truncated``
    counts them. Responses of similar length share a batch; the result does not depend on the batches.
    """

    def __init__(self, config: HuggingFaceScorerConfig, *others: HuggingFaceScorerConfig):
        """`others`: what else is read of the same classifier, under other labels or signs."""
        import torch

        self._config = config
        self._read = (config, *others)
        self._where = f"classifier {config.model!r}"
        self._device = _device(config, self._where)
        self._tokenizer = load_padding_tokenizer(config.model, self._where)
        self._model = load_classifier(config, dtype=getattr(torch, config.dtype)).to(self._device).eval()
        self._model.requires_grad_(False)
        labels = self._model.config.num_labels
        for label in (each.label for each in self._read):
            if label >= labels:
                raise ScorerError(f"{self._where} has {labels} labels, so label must be < {labels}, got {label}")
        self._rows = self._model.get_input_embeddings().num_embeddings
        if self._tokenizer.pad_token_id >= self._rows:
            raise ScorerError(f"{self._where} has no embedding for padding token {self._tokenizer.pad_token!r}")
        self._reader = make_reader(config, self._tokenizer, positions_of(self._model), where=self._where)
        self.max_length = self._reader.max_length
        self.truncated = 0
        """Responses so far whose input had to be shortened."""

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns = NO_COLUMNS) -> np.ndarray:
        """float64 [N]; NaN where the logit is not finite, the input is empty, or a token has no row in the model."""
        return self.score_each(prompts, responses)[:, 0]

    def score_each(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """float64 [N, 1 + others], as `score`: all of what is read comes of one pass."""
        check_aligned(prompts, responses)
        token_ids = [self._token_ids(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        readable = [index for index, ids in enumerate(token_ids) if ids and self._has_rows(ids)]
        by_length = sorted(readable, key=lambda index: len(token_ids[index]))
        scores_NK = np.full((len(responses), len(self._read)), np.nan)
        for start in range(0, len(by_length), self._config.batch_size):
            indices = by_length[start : start + self._config.batch_size]
            scores_NK[indices] = self._logits([token_ids[index] for index in indices])
        scores_NK[~np.isfinite(scores_NK)] = np.nan
        return scores_NK * [-1.0 if each.negate else 1.0 for each in self._read]

    def _has_rows(self, token_ids: list[int]) -> bool:
        beyond = first_without_row(token_ids, self._rows)
        if beyond is not None:
            logger.warning("%s %s", self._where, without_row(self._tokenizer.decode([beyond]), beyond, self._rows))
        return beyond is None

    def _logits(self, token_ids: list[list[int]]) -> np.ndarray:
        import torch

        lengths = [len(ids) for ids in token_ids]
        pad = padding_id(self._tokenizer.pad_token_id, token_ids)
        tell_padding(self._model, pad)
        input_ids = torch.full((len(token_ids), max(lengths)), pad)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        with torch.inference_mode():
            logits = self._model(
                input_ids=input_ids.to(self._device), attention_mask=attention_mask.to(self._device)
            ).logits
        return logits[:, [each.label for each in self._read]].double().cpu().numpy()

    def _token_ids(self, prompt: str, response: str) -> list[int]:
        token_ids, shortened = self._reader.read(prompt, response)
        if shortened and self.truncated == 0:
            logger.warning("%s reads at most %d tokens; longer inputs are shortened", self._where, self.max_length)
        self.truncated += shortened
        return token_ids


def _device(config: HuggingFaceScorerConfig, where: str) -> str:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ScorerError(f"{where} asks for device 'cuda', but torch sees no GPU")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def load_padding_tokenizer(model: str, where: str) -> Any:
    """A judge's tokenizer, which can fill up a batch. Raises ScorerError."""
    try:
        tokenizer = load_tokenizer(model, padding_side="right")
    except ModelError as error:
        raise ScorerError(f"classifier: {error}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ScorerError(f"tokenizer of {where} has neither a padding nor an end-of-sequence token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(config: HuggingFaceScorerConfig, **options: Any) -> Any:
    """The judge's model; ``options`` as of `rewards.pretrained.load_model`. Raises ScorerError."""
    if config.head is not None:
        options |= {"key_mapping": {rf"^{config.head}\.": "score."}, "num_labels": 1}
    try:
        return load_model("AutoModelForSequenceClassification", config.model, head="judge", **options)
    except ModelError as error:
        raise ScorerError(f"classifier: {error}") from error


def make_reader(config: HuggingFaceScorerConfig, tokenizer: Any, positions: int | None, *, where: str) -> Reader:
    """What the judge reads, no longer than the recipe, its tokenizer and its model allow. Raises ScorerError."""
    limits = [config.max_length, tokenizer.model_max_length, positions]
    most = int(min(limit for limit in limits if limit is not None and limit > 0))
    return Reader(tokenizer, config.template, max_length=most, pair=config.pair, where=where)
