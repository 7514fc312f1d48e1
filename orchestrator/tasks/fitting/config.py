"""What a fit needs to know: where the rows are, which model to start from, how to optimise, where to write."""

import math
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from learner.config import AdamBetas, LoraSection
from orchestrator.errors import BadInput
from orchestrator.recipes import check
from orchestrator.trees import read_yaml
from rewards.config import PreferencesConfig
from rewards.environment import local_folder, native_dtype
from rewards.judge_sections import HuggingFaceScorerConfig
from rewards.paths import BESIDE, Found, Written
from rewards.pretrained import Attention
from rewards.section import ObjectiveNames, Section, Seed


class Architecture(Section):
    """A new Llama of any size, with random weights."""

    hidden_size: int = Field(ge=8)
    """Of the hidden states."""
    num_layers: int = Field(ge=1)
    """Transformer blocks."""
    num_heads: int = Field(ge=1)
    """The CPU engine serves head dims 32, 64, ...; `hidden_size / num_heads` should be one of them for a policy."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Null: as many as heads."""
    intermediate_size: int = Field(ge=8)
    """Inner size of a block's MLP."""
    max_positions: int = Field(default=2048, ge=2)
    """Longest sequence, in tokens."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary position embeddings."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = True
    """Whether the LM head is the embedding matrix."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must be an even multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        return self


class ByteLevelBPE(Section):
    """A tokenizer trained on the rows' own text; no character is unknown to it."""

    vocab_size: int = Field(default=4096, ge=260)
    """Most tokens, special ones included."""
    min_frequency: int = Field(default=2, ge=1)
    """Times that a pair must occur in the rows to become a token."""
    eos_token: str = "<eos>"
    """Text of the token that ends a response."""
    pad_token: str = "<pad>"
    """Text of the token that fills up a batch."""
    special_words: tuple[str, ...] = ()
    """Texts that are always one token of their own, e.g. `Human:` (decoded like any other text)."""


class Optimization(Section):
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Exactly one of `steps` and `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(ge=1)
    """Rows per optimizer step; for a reward model, prompts with all their pairs."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """As many of them per forward pass; must divide `batch_size`. Null: all at once."""
    learning_rate: float = Field(gt=0)
    """Of AdamW, at its highest."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly."""
    final_learning_rate_ratio: float = Field(default=0.05, ge=0, le=1)
    """Last learning rate as a share of the peak (cosine only)."""
    adam_betas: AdamBetas = (0.9, 0.98)
    """Decay of the running means of gradient and squared gradient."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled (AdamW)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients, over all parameters, are scaled down to it."""
    group_by_length: bool = False
    """Batch rows of similar length: less padding, at the price of less random batches."""
    bf16: bool | Literal["native"] | None = None
    """Mixed precision: products in bfloat16, trained weights in float32. Null: on a GPU. `native`: there, and where the
    processor multiplies bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute the layers' activations in the backward pass: less memory, about a third more time."""

    def num_steps(self, examples: int) -> int:
        """Optimizer steps on so many rows (reward model: prompts): `steps`, or epochs x ceil(examples / batch_size)."""
        if self.epochs is None:
            assert self.steps is not None
            return self.steps
        return math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs must be given")
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size, got {self.batch_size} and {self.micro_batch_size}"
            )
        return self


class FitConfig(Section):
    """What both fits share."""

    data: Found | None = None
    """JSONL (plain or .gz) or a `datasets` folder. Null only when rows are passed in from Python."""
    heldout: Found | None = None
    """Rows to measure on. Null: `heldout_fraction` of `data`, drawn by `seed`."""
    heldout_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the rows that are not fitted, where `heldout` names none."""
    output: Written = Field(min_length=1)
    """Folder of the fitted model in Hugging Face format, with its tokenizer; must not hold a model yet."""
    model: Found | None = None
    """Folder or hub id to start from. Exactly one of `model` and `architecture`."""
    architecture: Architecture | None = None
    tokenizer: Found | ByteLevelBPE | None = None
    """Folder or hub id, or a tokenizer to train. Null: the one of `model`."""
    max_length: int = Field(default=512, ge=2)
    """Longest row in tokens. A longer one loses the start of its prompt, then (policy) the end of its response."""
    optimization: Optimization
    """How long, how large and how fast the steps are."""
    seed: Seed = 0
    """Of initial weights, of the order of rows and of those held out."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU when there is one."""
    attention: Attention = "auto"
    """Of transformers' implementations, for `model`. On a CPU `eager` takes a quarter off the time of short rows."""

    def mixed_precision(self, *, gpus: int) -> bool:
        """Whether products are in bfloat16, in a process that uses so many GPUs."""
        asked = self.optimization.bf16
        if asked == "native":
            return gpus > 0 or native_dtype() == "bfloat16"
        return gpus > 0 if asked is None else asked

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if (self.model is None) == (self.architecture is None):
            raise ValueError("exactly one of model and architecture must be given")
        return self


class PolicyFitConfig(FitConfig):
    """Supervised fitting of a causal policy on rows {"prompt", "response"}.

    A row with a "preference" (weights in the order of `objectives`, or an object by name) holds a plain prompt, which
    is written as G(x, w) by the renderer of the online stage. A row without one is already the model's whole input.
    """

    objectives: ObjectiveNames = ()
    """Names in order; needed when rows carry preferences."""
    preferences: PreferencesConfig = PreferencesConfig()
    contrast: float = Field(default=0.0, ge=0)
    """Weight of a term that teaches to read w: a response shall be likelier under its row's w than under another, drawn
    as `preferences` say; -log sigma(log pi(y|x, w) - log pi(y|x, w')). 0: none. Every row then needs a preference."""
    lora: LoraSection | None = None
    """Train low-rank adapters and merge them into the saved weights. Null: train every weight."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights, loaded and saved. `bfloat16` goes with `lora`."""

    @model_validator(mode="after")
    def _trained_weights_are_float32(self) -> Self:
        # The trainer keeps no float32 master copy, and most updates are too small for the 8 bits of a bfloat16.
        if self.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                "dtype must be float32 without lora, got bfloat16 (on a GPU products are in bfloat16 without it)"
            )
        return self


class RewardFitConfig(FitConfig):
    """Bradley-Terry training of a sequence classifier on pairs {"prompt", "chosen", "rejected"}."""

    template: str = "{prompt} {response}"
    """What the classifier reads; give the same template to the scorer in the recipe."""

    @field_validator("template")
    @classmethod
    def _a_scorer_would_take_it(cls, template: str) -> str:
        return HuggingFaceScorerConfig(model="any", template=template).template


C = TypeVar("C", bound=FitConfig)


def load_fit_config(kind: type[C], path: Path) -> C:
    """Reads a YAML file; unknown keys, wrong types, missing `data` and folders that are not there are refused.

    Paths are found beside it, else in the working directory (`rewards.paths.find`).

    Raises:
        BadInput: naming the file, the key path, the rule and the value.
    """
    path = Path(path)
    config = check(partial(kind.model_validate, context={BESIDE: path.parent}), read_yaml(path), path)
    if config.data is None:
        raise BadInput(f"{path}: data: Field required")
    for key, model in (("model", config.model), ("tokenizer", config.tokenizer)):
        folder = local_folder(model) if isinstance(model, str) else None
        if folder is not None and not folder.is_dir():
            raise BadInput(f"{path}: {key}: must be a folder that is there, or a hub id, got {model!r}")
    return config
