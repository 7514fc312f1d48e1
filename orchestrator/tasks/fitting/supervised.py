"""Supervised fitting of a causal policy: cross-entropy on the response tokens, the end token included.

And what a fitted one answers, in plain transformers: enough to check it and to make pairs from it, without an engine.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.errors import BadInput
from orchestrator.tasks.fitting import models, trainer
from orchestrator.tasks.fitting.config import PolicyFitConfig
from orchestrator.tasks.fitting.trainer import IGNORED_LABEL, Example, FitReport, Row, seeded
from rewards.preferences import PreferenceError, PromptRenderer, parse_preference
from rewards.pretrained import load_model, load_tokenizer

RESPONSES_AT_ONCE = 512


def run_policy_fit(config_path: Path) -> FitReport:
    """`mi-epo fit-policy CONFIG.yaml`. Raises BadInput for anything wrong with the file or the rows it names."""
    return trainer.fit_from_file(PolicyFitConfig, config_path, ("prompt", "response"), fit_policy)


def fit_policy(
    config: PolicyFitConfig,
    training: Sequence[Row],
    heldout: Sequence[Row] | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Fits a policy on rows {"prompt", "response"[, "preference"]} and saves it with its tokenizer in `config.output`.

    Prompt and response are tokenised apart, exactly as the online stage meets them, and the end token closes every
    response that was not shortened. With a seed and one CPU thread the weights come out the same to the byte. With
    `config.lora` the adapters are merged before measuring and saving: the folder is a model like any other.

    Args:
        training: rows; with `heldout` None a share of them is held out.
        model: a causal model to start from, trained in place and in its own dtype, instead of the config's.
        tokenizer: instead of the config's.
        progress: receives one line now and then.

    Raises:
        BadInput: a row without response tokens, or with a preference that does not fit the objectives, or an adapter
            where the model can have none.
    """
    started = time.monotonic()
    output = trainer.require_new_output(config.output)
    with trainer.quiet():
        training, heldout = trainer.split(training, heldout, config)
        if tokenizer is None:
            texts = (row[field] for row in training for field in ("prompt", "response"))
            tokenizer = models.make_tokenizer(config, texts)
        if model is None:
            model = models.make_policy(config, tokenizer)
        config = models.within_positions(config, model)
        examples, shortened = _encode(config, tokenizer, training)
        heldout_examples, shortened_too = _encode(config, tokenizer, heldout)
        models.require_rows(model, tokenizer, (each["input_ids"] for each in (*examples, *heldout_examples)))
        collate = _collator(tokenizer.pad_token_id)
        if config.lora is not None:
            model = models.add_adapters(model, config.lora, config)
        loss = trainer.train(config, model, examples, collate, _response_loss, label="policy", progress=progress)
        if config.lora is not None:
            model = models.merge_adapters(model)
        heldout_loss, heldout_accuracy = _measure(model, heldout_examples, collate, config.optimization.batch_size)
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        trainer.save(model, tokenizer, output)
    return FitReport(
        output=config.output,
        steps=config.optimization.num_steps(len(training)),
        rows=len(training),
        loss=loss,
        heldout_rows=len(heldout),
        heldout_loss=heldout_loss,
        heldout_accuracy=heldout_accuracy,
        shortened_rows=shortened + shortened_too,
        seconds=time.monotonic() - started,
    )


def _prompt_text(config: PolicyFitConfig, row: Row, tokenizer: Any) -> str:
    """The model's whole input for a row."""
    if row.get("preference") is None:
        return row["prompt"]
    if not config.objectives:
        raise BadInput("objectives: must be given when rows have a preference")
    style = config.preferences
    renderer = PromptRenderer(style.conditioning, config.objectives, style.decimals, tokenizer)
    return renderer.text(row["prompt"], _preference(config, row))


def _preference(config: PolicyFitConfig, row: Row) -> Sequence[float]:
    preference = row["preference"]
    place = f"{config.data or 'rows'}: preference {preference!r}"
    if isinstance(preference, dict):
        named = preference
    elif isinstance(preference, list | tuple) and len(preference) == len(config.objectives):
        named = dict(zip(config.objectives, preference, strict=True))
    else:
        raise BadInput(f"{place}: must have one weight for each of {', '.join(config.objectives)}")
    try:
        return parse_preference(named, config.objectives).tolist()
    except PreferenceError as error:
        raise BadInput(f"{place}: {error}") from None


def _encode(config: PolicyFitConfig, tokenizer: Any, given: Sequence[Row]) -> tuple[list[Example], int]:
    """(token ids and labels of rows, how many of them had to be shortened)."""
    if not given:
        return [], 0
    examples: list[Example] = []
    shortened = 0
    templated = config.preferences.conditioning.style == "chat"  # then it has its special tokens already
    texts = [_prompt_text(config, row, tokenizer) for row in given]
    prompts = tokenizer(texts, add_special_tokens=not templated, verbose=False)["input_ids"]
    responses = tokenizer([row["response"] for row in given], add_special_tokens=False, verbose=False)["input_ids"]
    for row, prompt_ids, response_ids in zip(given, map(list, prompts), map(list, responses), strict=True):
        if not response_ids:
            place = config.data or "rows"
            raise BadInput(f"{place}: response must have at least one token, got {row['response']!r}")
        response_ids.append(tokenizer.eos_token_id)
        if len(prompt_ids) + len(response_ids) > config.max_length:
            shortened += 1
            response_ids = response_ids[: config.max_length - 1]
            prompt_ids = prompt_ids[len(prompt_ids) + len(response_ids) - config.max_length :]
        labels = [IGNORED_LABEL] * len(prompt_ids) + response_ids
        examples.append({"input_ids": prompt_ids + response_ids, "labels": labels})
    return examples, shortened


def _collator(pad_token_id: int) -> trainer.Collate:
    def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
        inputs = [example["input_ids"] for example in examples]
        return {
            "input_ids": trainer.pad(inputs, pad_token_id),
            "attention_mask": trainer.mask(inputs),
            "labels": trainer.pad([example["labels"] for example in examples], IGNORED_LABEL),
        }

    return collate


def _response_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [R, V], targets [R]) of the R response tokens of a batch."""
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    wanted = targets != IGNORED_LABEL
    return hidden[:, :-1][wanted].float(), targets[wanted]


def _response_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits, targets = _response_logits(model, batch)
    return torch.nn.functional.cross_entropy(logits, targets)


@torch.inference_mode()
def _measure(
    model: Any, examples: Sequence[Example], collate: trainer.Collate, batch_size: int
) -> tuple[float | None, float | None]:
    """(nats per response token, share of response tokens predicted first), None without examples."""
    if not examples:
        return None, None
    nats, hits, count = 0.0, 0, 0
    for batch in trainer.batches_to_measure(model, examples, collate, batch_size):
        logits, targets = _response_logits(model, batch)
        nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        hits += int((logits.argmax(dim=-1) == targets).sum())
        count += len(targets)
    return nats / count, hits / count


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
    model = load_model("AutoModelForCausalLM", str(policy), head="whole", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(policy))
    texts = [renderer.text(prompt, preference) for prompt, preference in zip(prompts, preferences, strict=True)]
    prompt_ids = tokenizer(texts)["input_ids"]
    responses: list[str] = []
    with seeded(seed), torch.inference_mode():
        for start in range(0, len(prompt_ids), RESPONSES_AT_ONCE):
            responses += _sample_batch(model, tokenizer, prompt_ids[start : start + RESPONSES_AT_ONCE], max_new_tokens)
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
