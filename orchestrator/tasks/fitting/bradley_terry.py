"""Bradley-Terry training of a reward model: -log sigmoid(r(chosen) - r(rejected)), r read at the last token.

A pair may say how sure its label is: "probability" is the share of judges who prefer `chosen` (1 when it is absent),
and the loss is then the cross-entropy to it. Rewards so trained keep the distances that plain labels flatten.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.errors import BadInput
from orchestrator.progress import TELL
from orchestrator.tasks.fitting import models, trainer
from orchestrator.tasks.fitting.config import RewardFitConfig
from orchestrator.tasks.fitting.trainer import Example, FitReport, Row
from rewards.ensemble import write_scale
from rewards.reading import Reader, padding_id, tell_padding
from rewards.scorers import ScorerError


def run_reward_fit(config_path: Path, say: Callable[[str], None] = TELL) -> FitReport:
    """`mi-epo fit-reward CONFIG.yaml`. Raises BadInput for anything wrong with the file or the rows it names."""
    return trainer.fit_from_file(RewardFitConfig, config_path, ("prompt", "chosen", "rejected"), fit_reward, say)


def fit_reward(
    config: RewardFitConfig,
    training: Sequence[Row],
    heldout: Sequence[Row] | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    label: str = "reward model",
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Trains a one-label sequence classifier on pairs {"prompt", "chosen", "rejected"[, "probability"]}, saves it.

    All pairs of one prompt are one element of a batch, and a response is read once however many pairs it is in, as in
    InstructGPT (section 3.5): several answers to a prompt cost no more than one pair each. The loss is the mean over
    the pairs of a batch. The folder, `config.output`, works as `scorer: {type: huggingface, model: ...}` of a recipe,
    with the same template. With a seed and one CPU thread the weights come out the same to the byte.

    Args:
        training: pairs; with `heldout` None the pairs of a share of the prompts are held out.
        model: a classifier to start from, trained in place, instead of the config's.
        tokenizer: instead of the config's.
        label: names the model in progress lines.
        progress: receives one line now and then.

    Raises:
        BadInput: a probability outside [0.5, 1], or a template that leaves no room for a response.
        RunFailed: a loss, a gradient or a weight is not finite.
    """
    started = time.monotonic()
    output = trainer.require_new_output(config.output)
    with trainer.quiet():
        heldout_given = None if heldout is None else _by_prompt(heldout)
        groups, heldout_groups = trainer.split(_by_prompt(training), heldout_given, config)
        if tokenizer is None:
            tokenizer = models.make_tokenizer(config, (text for group in groups for text in group.texts))
        if model is None:
            model = models.make_classifier(config, tokenizer)
        config = models.within_positions(config, model)
        trainer.check_saving(model, tokenizer)
        examples, shortened = _encode(config, tokenizer, groups)
        heldout_examples, shortened_too = _encode(config, tokenizer, heldout_groups)
        inputs = [ids for example in (*examples, *heldout_examples) for ids in example["inputs"]]
        models.require_rows(model, tokenizer, inputs)
        pad = padding_id(tokenizer.pad_token_id, inputs)
        tell_padding(model, pad)
        collate = _collator(pad)
        loss = trainer.train(config, model, examples, collate, _bradley_terry, label=label, progress=progress)
        batch_size = config.optimization.batch_size
        heldout_loss, heldout_accuracy = _measure(model, heldout_examples, collate, batch_size)
        scores = _scores(model, heldout_examples or examples, collate, batch_size)
        trainer.require_finite(heldout_loss, "held-out loss")
        tell_padding(model, tokenizer.pad_token_id)
        trainer.save(model, tokenizer, output)
        write_scale(Path(config.output), scores)
    return FitReport(
        output=config.output,
        steps=config.optimization.num_steps(len(groups)),
        rows=sum(len(group.pairs) for group in groups),
        loss=loss,
        heldout_rows=sum(len(group.pairs) for group in heldout_groups),
        heldout_loss=heldout_loss,
        heldout_accuracy=heldout_accuracy,
        shortened_rows=shortened + shortened_too,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """The comparisons of one prompt: distinct responses, (chosen, rejected) as indices into them, how sure each is."""

    prompt: str
    texts: list[str]
    pairs: list[tuple[int, int]]
    probabilities: list[float]


def _by_prompt(pairs: Sequence[Row]) -> list[_Group]:
    """In order of first appearance."""
    groups: dict[str, _Group] = {}
    for row in pairs:
        group = groups.setdefault(row["prompt"], _Group(row["prompt"], [], [], []))
        for side in ("chosen", "rejected"):
            if row[side] not in group.texts:
                group.texts.append(row[side])
        group.pairs.append((group.texts.index(row["chosen"]), group.texts.index(row["rejected"])))
        group.probabilities.append(_probability(row))
    return list(groups.values())


def _probability(row: Row) -> float:
    value = row.get("probability", 1.0)
    if not isinstance(value, int | float) or not 0.5 <= value <= 1:
        raise BadInput(f"pair of prompt {row['prompt']!r:.60}: probability must lie in [0.5, 1], got {value!r}")
    return float(value)


def _encode(config: RewardFitConfig, tokenizer: Any, groups: Sequence[_Group]) -> tuple[list[Example], int]:
    """(token ids, responses that had to be shortened), read as a scorer reads them."""
    try:
        reader = Reader(tokenizer, config.template, max_length=config.max_length, where=config.output)
    except ScorerError as error:
        raise BadInput(str(error)) from None
    examples: list[Example] = []
    shortened = 0
    for group in groups:
        read = [reader.read(group.prompt, text) for text in group.texts]
        inputs = [ids for ids, _ in read]
        shortened += sum(cut for _, cut in read)
        of_pairs = {"pairs": group.pairs, "probabilities": group.probabilities}
        examples.append({"input_ids": max(inputs, key=len), "inputs": inputs, **of_pairs})
    return examples, shortened


def _collator(pad_token_id: int) -> trainer.Collate:
    """Batch of R responses: input_ids and attention_mask [R, T], pairs [P, 2] as indices, probabilities [P]."""

    def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
        inputs: list[list[int]] = []
        pairs: list[tuple[int, int]] = []
        for example in examples:
            pairs += [(len(inputs) + chosen, len(inputs) + rejected) for chosen, rejected in example["pairs"]]
            inputs += example["inputs"]
        return {
            "input_ids": trainer.pad(inputs, pad_token_id),
            "attention_mask": trainer.mask(inputs),
            "pairs": torch.tensor(pairs),
            "probabilities": torch.tensor([value for example in examples for value in example["probabilities"]]),
        }

    return collate


def _rewards(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of every response [R]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits[:, 0].float()


@torch.inference_mode()
def _scores(model: Any, examples: Sequence[Example], collate: trainer.Collate, batch_size: int) -> np.ndarray:
    """Of all responses."""
    batches = trainer.batches_to_measure(model, examples, collate, batch_size)
    return torch.cat([_rewards(model, batch) for batch in batches]).double().cpu().numpy()


def _margins(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """r(chosen) - r(rejected) of every pair [P]."""
    rewards = _rewards(model, batch)
    return rewards[batch["pairs"][:, 0]] - rewards[batch["pairs"][:, 1]]


def _bradley_terry(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return _cross_entropy(_margins(model, batch), batch["probabilities"], reduction="mean")


def _cross_entropy(margins: torch.Tensor, probabilities: torch.Tensor, *, reduction: str) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(margins, probabilities, reduction=reduction)


@torch.inference_mode()
def _measure(
    model: Any, examples: Sequence[Example], collate: trainer.Collate, batch_size: int
) -> tuple[float | None, float | None]:
    """(loss, share of pairs ranked as labelled), None without examples."""
    if not examples:
        return None, None
    losses, hits = [], []
    for batch in trainer.batches_to_measure(model, examples, collate, batch_size):
        margins = _margins(model, batch)
        losses.append(_cross_entropy(margins, batch["probabilities"], reduction="sum"))
        hits.append(margins > 0)
    right = torch.cat(hits).double()
    return float(torch.stack(losses).sum()) / len(right), float(right.mean())
