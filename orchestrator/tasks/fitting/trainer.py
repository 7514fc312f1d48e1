"""The shared part of both fits: rows read, checked and split, and `transformers.Trainer`.

It is quiet, deterministic by seed, and writes only where it is told.
"""

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import GenerationConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from orchestrator.data import text_of
from orchestrator.errors import BadInput, RunFailed
from orchestrator.progress import how_far
from orchestrator.rows import read_rows
from orchestrator.tasks.fitting.config import C, FitConfig, load_fit_config
from orchestrator.tasks.fitting.devices import require_one
from rewards.environment import one_line

Row = Mapping[str, Any]
Item = TypeVar("Item")
Example = Mapping[str, Any]
"""One encoded row of a batch; "input_ids" is always there, for grouping by length."""
Collate = Callable[[list[Example]], dict[str, torch.Tensor]]
Progress = Callable[[str], None]

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """Example: `FitReport(output="policies/start", steps=350, rows=22400, loss=0.64, ..., seconds=36.1)`."""

    output: str
    steps: int
    rows: int  # rows or pairs trained on
    loss: float  # mean over the last tenth of the steps
    heldout_rows: int
    heldout_loss: float | None  # None without held-out rows
    heldout_accuracy: float | None  # policy: next response token; reward: pairs ranked as labelled
    shortened_rows: int  # rows that had to be cut to max_length
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.output}: {self.steps} steps on {self.rows} rows in {self.seconds:.0f} s, loss {self.loss:.3f}"
        if self.heldout_rows:
            measured = f"loss {self.heldout_loss:.3f}, accuracy {self.heldout_accuracy:.3f}"
            text += f"; {self.heldout_rows} held-out rows: {measured}"
        return text + (f"; {self.shortened_rows} rows shortened" if self.shortened_rows else "")


class QuietTrainer(Trainer):
    """`Trainer` with a loss of one's own.

    Args:
        batch_loss: (model, collated batch) -> mean loss of the batch, a scalar.
    """

    def __init__(
        self, *args: Any, batch_loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batch_loss = batch_loss
        self.model_accepts_loss_kwargs = False  # the mean over micro-batches is then left to the trainer
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = self.batch_loss(model, inputs)
        return (loss, {}) if return_outputs else loss


class _ProgressLines(TrainerCallback):
    def __init__(self, label: str, say: Progress | None) -> None:
        self.label, self.say = label, say
        self.losses: list[float] = []
        self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            require_finite(logs.get(name), f"{self.label}: {name} of step {state.global_step}")
        self.losses.append(logs["loss"])
        if self.say:
            loss = f"loss {logs['loss']:.3f}"
            done, steps = state.global_step, state.max_steps
            self.say(how_far(self.label, done, steps, "steps", started=self.started, also=loss))


def train(
    config: FitConfig,
    model: Any,
    examples: Sequence[Example],
    collate: Collate,
    batch_loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
    *,
    label: str,
    progress: Progress | None,
) -> float:
    """Trains `model` in place; returns the mean training loss over the last tenth of the steps.

    Raises:
        BadInput: several GPUs or processes, which would make every step larger than the config says.
        RunFailed: a loss or a gradient is not finite.
    """
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    require_one(os.environ, gpus=gpus)
    lines = _ProgressLines(label, progress)
    trainer = QuietTrainer(
        model=model,
        args=_arguments(config, config.optimization.num_steps(len(examples)), gpus=gpus),
        train_dataset=examples,
        data_collator=collate,
        callbacks=[lines],
        batch_loss=batch_loss,
    )
    trainer.train()
    last = lines.losses[-max(1, len(lines.losses) // 10) :]
    return sum(last) / len(last)


def _arguments(config: FitConfig, steps: int, *, gpus: int) -> TrainingArguments:
    optimization = config.optimization
    micro_batch_size = optimization.micro_batch_size or optimization.batch_size
    cosine = optimization.schedule == "cosine"
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # made if it is not there, and nothing is written into it
        max_steps=steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=optimization.batch_size // micro_batch_size,
        learning_rate=optimization.learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if cosine else "constant_with_warmup",
        lr_scheduler_kwargs={"min_lr_rate": optimization.final_learning_rate_ratio} if cosine else None,
        warmup_steps=optimization.warmup_steps,
        adam_beta1=optimization.adam_betas[0],
        adam_beta2=optimization.adam_betas[1],
        weight_decay=optimization.weight_decay,
        max_grad_norm=optimization.max_grad_norm,
        train_sampling_strategy="group_by_length" if optimization.group_by_length else "random",
        bf16=config.mixed_precision(gpus=gpus),
        gradient_checkpointing=optimization.gradient_checkpointing,
        use_cpu=config.device == "cpu" or gpus == 0,  # said, or bfloat16 is refused where there is no GPU
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # which would show the loss before in the place of one that is not finite
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def fit_from_file(
    kind: type[C], path: Path, fields: Sequence[str], fit: Callable[..., FitReport], say: Progress
) -> FitReport:
    """`fit` with the config in a YAML file and the rows that it names, which have these fields.

    Raises:
        BadInput: anything wrong with the file or the rows.
        RunFailed: the fit diverged.
    """
    config = load_fit_config(kind, path)
    require_new_output(config.output)
    assert config.data is not None
    rows = load_rows(config.data, fields)
    heldout = load_rows(config.heldout, fields) if config.heldout is not None else None
    if config.heldout is not None and Path(config.heldout).samefile(config.data):
        raise BadInput(f"{path}: heldout: must be another file than data, got {config.heldout!r} for both")
    return fit(config, rows, heldout, progress=say)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random state, as `seed` sets it inside and as it was outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notices of the libraries underneath."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    # DeepSpeed sets its logger up when it is first imported, somewhere inside; only a filter survives that.
    deepspeed_logger = logging.getLogger("DeepSpeed")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    deepspeed_logger.addFilter(_only_errors)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        deepspeed_logger.removeFilter(_only_errors)
        if bars:
            transformers_logging.enable_progress_bar()


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Right-padded int64 [B, T], T the longest."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences])


def mask(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Attention mask int64 [B, T] that goes with `pad`."""
    return pad([[1] * len(sequence) for sequence in sequences], 0)


def batches_to_measure(
    model: Any, examples: Sequence[Example], collate: Collate, size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Collated batches of similar length where the model is, for a model that is measured."""
    model.eval()
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    for start in range(0, len(ordered), size):
        batch = collate(ordered[start : start + size])
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}


def check_saving(model: Any, tokenizer: Any) -> None:
    """Meet the rules of saving before the first step, by writing all but the weights to nowhere.

    Raises:
        BadInput: transformers would not save what it loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:  # transformers raises many kinds
            raise BadInput(f"model: what was loaded could not be saved: {one_line(error)}") from None


def require_finite(value: float | None, what: str) -> None:
    """Raises RunFailed: a fit that has diverged, or that started from a model that had."""
    if value is not None and not math.isfinite(value):
        raise RunFailed(
            f"{what} must be finite, got {value:g}; nothing was saved (a lower optimization.learning_rate may help, "
            "where the model that it starts from is sound)"
        )


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """A Hugging Face folder: safetensors, config and tokenizer; whole, or nothing that a later fit would stumble on.

    Raises:
        RunFailed: a weight is not finite.
    """
    for name, weight in model.named_parameters():
        require_finite(float(weight.detach().abs().max()), f"{output}: the largest weight of {name}")
    model.config.use_cache = True  # the trainer turns it off
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.partial-") as folder:
        partial = Path(folder)
        with _lawful_generation_config(model) as generation:
            model.save_pretrained(partial, safe_serialization=True)
        if generation is not None:
            generation.to_json_file(partial / "generation_config.json", keys_to_pop=["compile_config"])
        tokenizer.save_pretrained(partial)
        output.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):  # which says: a model
            file.replace(output / file.name)


@contextlib.contextmanager
def _lawful_generation_config(model: Any) -> Iterator[Any]:
    """The model's generation configuration, put aside: transformers saves no model with one that breaks its rules.

    It loads them, and a policy's may break them: `temperature` without `do_sample`, say.
    """
    generation = getattr(model, "generation_config", None)
    if generation is None:
        yield None
        return
    model.generation_config = GenerationConfig()
    try:
        yield generation
    finally:
        model.generation_config = generation


def require_new_output(output: str) -> Path:
    """Raises BadInput when the folder already holds a model, or cannot be written; the folder around it is made."""
    path = Path(output)
    if (path / "config.json").exists():
        raise BadInput(f"{output}: already holds a model; choose another output folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=path.parent).cleanup()
    except OSError as error:
        raise BadInput(f"{output}: cannot be written: {error.strerror}") from None
    return path


def load_rows(path: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Rows in file order, each with a text in every one of `fields` (only the prompt may be empty).

    Raises:
        BadInput: naming file and line.
    """
    rows = []
    for place, row in read_rows(path):
        for name in fields:
            text_of(row, name, place, may_be_empty=name == "prompt")
        rows.append(row)
    if not rows:
        raise BadInput(f"{path}: holds no rows")
    return rows


def split(items: Sequence[Item], heldout: Sequence[Item] | None, config: FitConfig) -> tuple[list[Item], list[Item]]:
    """(training, held-out) items; the held-out share is drawn by the seed unless the items are given."""
    if heldout is None:
        count = int(len(items) * config.heldout_fraction)
        order = np.random.default_rng([config.seed, 10]).permutation(len(items))
        drawn = set(order[:count].tolist())
        heldout = [item for index, item in enumerate(items) if index in drawn]
        items = [item for index, item in enumerate(items) if index not in drawn]
    if not items:
        raise BadInput(f"{config.data or 'rows'}: holds no rows to train on")
    return list(items), list(heldout)
