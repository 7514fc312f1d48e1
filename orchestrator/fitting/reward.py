"""Bradley-Terry training of a reward model: -log sigmoid(r(chosen) - r(rejected)), r a scalar read at the last token."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.fitting import models, rows, trainer
from orchestrator.fitting.config import RewardFitConfig, load_fit_config
from orchestrator.fitting.report import FitReport
from orchestrator.fitting.rows import Row
from orchestrator.fitting.trainer import Example


def run_reward_fit(config_path: Path) -> FitReport:
    """`mi-epo fit-reward CONFIG.yaml`. Raises BadInput for anything wrong with the file or the rows it names."""
    config = load_fit_config(RewardFitConfig, config_path)
    trainer.require_new_output(config.output)
    training, heldout = rows.read_split(config, ("prompt", "chosen", "rejected"))
    return fit_reward(config, training, heldout, progress=lambda line: print(line, flush=True))


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
    """Trains a one-label sequence classifier on pairs {"prompt", "chosen", "rejected"} and saves it in `config.output`.

    The folder works as `scorer: {type: huggingface, model: ...}` of a recipe, with the same template. With a seed and
    one CPU thread the weights come out the same to the byte.

    Args:
        training: pairs; with `heldout` None a share of them is held out.
        model: a classifier to start from, trained in place, instead of the config's.
        tokenizer: instead of the config's.
        label: names the model in progress lines.
        progress: receives one line now and then.
    """
    started = time.monotonic()
    output = trainer.require_new_output(config.output)
    with trainer.quiet():
        training, heldout = rows.split(training, heldout, config)
        if tokenizer is None:
            tokenizer = models.make_tokenizer(
                config, (fill(config.template, row["prompt"], row[side]) for row in training for side in SIDES)
            )
        if model is None:
            model = models.make_classifier(config, tokenizer)
        encode = _Encoder(config, tokenizer)
        examples, heldout_examples = encode(training), encode(heldout)
        collate = _collator(tokenizer.pad_token_id)
        loss = trainer.train(config, model, examples, collate, _bradley_terry, label=label, progress=progress)
        heldout_loss, heldout_accuracy = _measure(model, heldout_examples, collate, config.optimization.batch_size)
        trainer.save(model, tokenizer, output)
    return FitReport(
        output=config.output,
        steps=config.optimization.steps,
        rows=len(training),
        loss=loss,
        heldout_rows=len(heldout),
        heldout_loss=heldout_loss,
        heldout_accuracy=heldout_accuracy,
        shortened_rows=encode.shortened,
        seconds=time.monotonic() - started,
    )


SIDES = ("chosen", "rejected")


def fill(template: str, prompt: str, response: str) -> str:
    """`template` with both filled in; braces inside either are plain text."""
    before, after = template.split("{response}")
    return before.replace("{prompt}", prompt) + response + after.replace("{prompt}", prompt)


class _Encoder:
    """Pairs -> two token id lists each; counts the pairs that had to be shortened. Long inputs lose their start."""

    def __init__(self, config: RewardFitConfig, tokenizer: Any) -> None:
        self.config, self.tokenizer, self.shortened = config, tokenizer, 0

    def __call__(self, pairs: Sequence[Row]) -> list[Example]:
        if not pairs:
            return []
        limit = self.config.max_length
        chosen, rejected = (
            self.tokenizer([fill(self.config.template, row["prompt"], row[side]) for row in pairs], verbose=False)["input_ids"]
            for side in SIDES
        )
        self.shortened += sum(max(len(one), len(other)) > limit for one, other in zip(chosen, rejected, strict=True))
        return [
            {"input_ids": list(one)[-limit:], "rejected_ids": list(other)[-limit:]}
            for one, other in zip(chosen, rejected, strict=True)
        ]


def _collator(pad_token_id: int) -> trainer.Collate:
    def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
        inputs = [example[side] for side in ("input_ids", "rejected_ids") for example in examples]
        return {"input_ids": trainer.pad(inputs, pad_token_id), "attention_mask": trainer.mask(inputs)}

    return collate


def _margins(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """r(chosen) - r(rejected) [B]; the batch holds the chosen rows first, then the rejected ones."""
    scores = model(**batch, use_cache=False).logits[:, 0].float()
    chosen, rejected = scores.chunk(2)
    return chosen - rejected


def _bradley_terry(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(_margins(model, batch)).mean()


@torch.inference_mode()
def _measure(
    model: Any, examples: Sequence[Example], collate: trainer.Collate, batch_size: int
) -> tuple[float | None, float | None]:
    """(loss, share of pairs ranked as labelled), None without examples."""
    if not examples:
        return None, None
    model.eval()
    margins = torch.cat(
        [
            _margins(model, {name: tensor.to(model.device) for name, tensor in collate(batch).items()}).cpu()
            for batch in trainer.batches(examples, batch_size)
        ]
    )
    return float(-torch.nn.functional.logsigmoid(margins).mean()), float((margins > 0).double().mean())
