"""Supervised fitting of a causal policy: cross-entropy on the response tokens, the end token included.

And what a fitted one answers, in plain transformers: enough to check it and to make pairs from it, without an engine.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.errors import BadInput
from orchestrator.inputs import check_renderer
from orchestrator.progress import TELL
from orchestrator.tasks.fitting import models, trainer
from orchestrator.tasks.fitting.config import PolicyFitConfig
from orchestrator.tasks.fitting.trainer import IGNORED_LABEL, Example, FitReport, Row, seeded
from rewards.preferences import PromptRenderer
from rewards.pretrained import load_model, load_tokenizer
from rewards.prompts import Prompt, as_prompt
from rewards.reading import first_that
from rewards.sampling import SamplingSection
from rewards.simplex import PreferenceError, parse_preference, sample_negatives
from rewards.tokens import SpecialTokens

RESPONSES_AT_ONCE = 512


def run_policy_fit(config_path: Path, say: Callable[[str], None] = TELL) -> FitReport:
    """`mi-epo fit-policy CONFIG.yaml`. Raises BadInput for anything wrong with the file or the rows it names."""
    return trainer.fit_from_file(PolicyFitConfig, config_path, ("prompt", "response"), fit_policy, say)


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
    `config.lora` the adapters are merged before measuring and saving: the folder is a model like any other. With
    `config.contrast` every response is read a second time, under a w that is not its own.

    Args:
        training: rows; with `heldout` None a share of them is held out.
        model: a causal model to start from, trained in place and in its own dtype, instead of the config's.
        tokenizer: instead of the config's.
        progress: receives one line now and then.

    Raises:
        BadInput: a row without response tokens, or with a preference that does not fit the objectives or that a
            contrast lacks, objectives that no row weighs, or an adapter where the model can have none.
        RunFailed: a loss, a gradient or a weight is not finite.
    """
    started = time.monotonic()
    output = trainer.require_new_output(config.output)
    with trainer.quiet():
        training, heldout = trainer.split(training, heldout, config)
        if tokenizer is None:
            texts = (row[field] for row in training for field in ("prompt", "response"))
            tokenizer = models.make_tokenizer(config, texts)
        if tokenizer.eos_token_id is None:
            raise BadInput("tokenizer: must have an end-of-sequence token, which closes every response, got none")
        _check_conditioning(config, tokenizer, [*training, *heldout], progress)
        if model is None:
            model = models.make_policy(config, tokenizer)
        config = models.within_positions(config, model)
        trainer.check_saving(model, tokenizer)
        examples, shortened = _encode(config, tokenizer, training)
        heldout_examples, shortened_too = _encode(config, tokenizer, heldout)
        models.require_rows(model, tokenizer, (each["input_ids"] for each in (*examples, *heldout_examples)))
        collate = _collator(tokenizer.pad_token_id)
        collate_training, batch_loss = collate, _response_loss
        if config.contrast:
            others, _ = _encode(config, tokenizer, _under_other_preferences(config, training))
            examples = [{**own, "other": other} for own, other in zip(examples, others, strict=True)]
            collate_training, batch_loss = _paired(collate), partial(_contrastive_loss, contrast=config.contrast)
        if config.lora is not None:
            model = models.add_adapters(model, config.lora, config)
        loss = trainer.train(config, model, examples, collate_training, batch_loss, label="policy", progress=progress)
        if config.lora is not None:
            model = models.merge_adapters(model)
        heldout_loss, heldout_accuracy = _measure(model, heldout_examples, collate, config.optimization.batch_size)
        trainer.require_finite(heldout_loss, "held-out loss")
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


def _under_other_preferences(config: PolicyFitConfig, rows: Sequence[Row]) -> list[Row]:
    """The rows with other vectors in place of their own."""
    if missing := sum(row.get("preference") is None for row in rows):
        raise BadInput(f"{config.data or 'rows'}: contrast needs a preference in every row, {missing} have none")
    if len(config.objectives) < 2:
        raise BadInput(f"contrast: needs at least two objectives to weigh, got {list(config.objectives)}")
    style, own_NK = config.preferences, np.array([_preference(config, row) for row in rows])
    other_NK = sample_negatives(
        np.random.default_rng([config.seed, 11]),
        own_NK,
        alpha=style.alpha,
        decimals=style.decimals,
        min_distance=style.min_distance,
    )
    return [{**row, "preference": other.tolist()} for row, other in zip(rows, other_NK, strict=True)]


def _check_conditioning(
    config: PolicyFitConfig, tokenizer: Any, rows: Sequence[Row], progress: Callable[[str], None] | None
) -> None:
    """Raises BadInput where w cannot be read in the prompts of the rows that have one, or none has."""
    renderer = _renderer(config, tokenizer)
    if renderer is None:
        return
    asking = [row["prompt"] for row in rows if row.get("preference") is not None]
    where = config.data or "rows"
    if not asking:
        raise BadInput(f"{where}: objectives need rows with a preference, got none in {len(rows)} rows")
    if progress and len(asking) < len(rows):
        progress(f"{where}: {len(rows) - len(asking)} of {len(rows)} rows have no preference and are read as they are")
    check_renderer(renderer, asking, where="preferences.conditioning")


def _encode(config: PolicyFitConfig, tokenizer: Any, given: Sequence[Row]) -> tuple[list[Example], int]:
    """(token ids and labels of rows, how many of them had to be shortened)."""
    special, renderer = SpecialTokens(tokenizer), _renderer(config, tokenizer)
    examples: list[Example] = []
    shortened = 0
    for row in given:
        response_ids = special.response_ids(row["response"])
        if response_ids == special.response_ids(""):
            place = config.data or "rows"
            raise BadInput(f"{place}: response must have at least one token, got {row['response']!r}")
        try:
            ids_of = _prompt_encoder(config, row, renderer, special)
            prompt_ids = ids_of(row["prompt"])
            if len(prompt_ids) + len(response_ids) > config.max_length:
                shortened += 1
                prompt_ids, response_ids = _shortened(config, row["prompt"], ids_of, response_ids)
        except PreferenceError as error:
            raise BadInput(f"preferences.conditioning: {error}") from None
        labels = [IGNORED_LABEL] * len(prompt_ids) + response_ids
        examples.append({"input_ids": prompt_ids + response_ids, "labels": labels})
    return examples, shortened


def _renderer(config: PolicyFitConfig, tokenizer: Any) -> PromptRenderer | None:
    """What writes the rows' preferences; None where no objectives are named."""
    if not config.objectives:
        return None
    style = config.preferences
    return PromptRenderer(style.conditioning, config.objectives, style.decimals, tokenizer)


def _prompt_encoder(
    config: PolicyFitConfig, row: Row, renderer: PromptRenderer | None, special: SpecialTokens
) -> Callable[..., list[int]]:
    """From a row's prompt, or what is left of it, to the model's whole input."""
    if row.get("preference") is None:
        return partial(special.open_ids, templated=config.preferences.conditioning.style == "chat")
    if renderer is None:
        raise BadInput("objectives: must be given when rows have a preference")
    return partial(renderer.token_ids, preference=_preference(config, row))


def _shortened(
    config: PolicyFitConfig, prompt: Prompt | str, ids_of: Callable[..., list[int]], response_ids: list[int]
) -> tuple[list[int], list[int]]:
    """Both within `max_length`. What a template puts around the prompt stays whole: w must be read in every row."""
    least = max(1, len(ids_of("")))
    if least >= config.max_length:
        raise BadInput(
            f"max_length: must leave room for more than the template's {least} tokens, got {config.max_length}"
        )
    response_ids = response_ids[: config.max_length - least]
    room = config.max_length - len(response_ids)
    text = as_prompt(prompt).text  # of a dialogue, what is asked last alone
    dropped = first_that(len(text), lambda start: len(ids_of(text[start:])) <= room)
    return ids_of(text[dropped:]), response_ids


def _collator(pad_token_id: int) -> trainer.Collate:
    def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
        inputs = [example["input_ids"] for example in examples]
        return {
            "input_ids": trainer.pad(inputs, pad_token_id),
            "attention_mask": trainer.mask(inputs),
            "labels": trainer.pad([example["labels"] for example in examples], IGNORED_LABEL),
        }

    return collate


def _paired(collate: trainer.Collate) -> trainer.Collate:
    """A batch of the examples and, below them in the same order, of their others."""
    return lambda examples: collate([*examples, *(example["other"] for example in examples)])


def _response_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [R, V], targets [R]) of the R response tokens of a batch."""
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    wanted = targets != IGNORED_LABEL
    return hidden[:, :-1][wanted].float(), targets[wanted]


def _response_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits, targets = _response_logits(model, batch)
    return torch.nn.functional.cross_entropy(logits, targets)


def _contrastive_loss(model: Any, batch: dict[str, torch.Tensor], *, contrast: float) -> torch.Tensor:
    """Cross-entropy of the upper half of a batch, plus `contrast` times -log sigma(upper - lower) of responses."""
    logits, targets = _response_logits(model, batch)
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    lengths = (batch["labels"][:, 1:] != IGNORED_LABEL).sum(dim=1).tolist()
    own, other = torch.stack([part.sum() for part in nats.split(lengths)]).chunk(2)
    tokens = sum(lengths[: len(lengths) // 2])
    return own.sum() / tokens + contrast * torch.nn.functional.softplus(own - other).mean()


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
    renderer = type(renderer)(renderer.config, renderer.objectives, renderer.decimals, tokenizer)
    prompt_ids = [renderer.token_ids(prompt, w.tolist()) for prompt, w in zip(prompts, preferences, strict=True)]
    responses: list[str] = []
    with seeded(seed), torch.inference_mode():
        for start in range(0, len(prompt_ids), RESPONSES_AT_ONCE):
            responses += _sample_batch(model, tokenizer, prompt_ids[start : start + RESPONSES_AT_ONCE], max_new_tokens)
    return responses


def _sample_batch(model: Any, tokenizer: Any, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    from transformers import GenerationConfig

    batch = tokenizer.pad({"input_ids": list(prompt_ids)}, padding_side="left", return_tensors="pt")
    sampling = SamplingSection(max_new_tokens=max_new_tokens)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**sampling.generation_config(ends))
    tokens = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
