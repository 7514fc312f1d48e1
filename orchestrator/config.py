"""The recipe: every room's section composed into one model, and the YAML file it comes from.

A recipe is YAML; dotted overrides (`learner.learning_rate=1e-4`, `objectives.0.scorer.model=./rm`) are applied to the
parsed tree before it is checked, so an override obeys the same rules as the file. `{seed}` in `assets.directory` and
`{assets}` in any other string are filled in before checking.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from actors.config import RolloutConfig
from learner.config import LearnerConfig
from learner.methods import METHODS
from orchestrator.errors import BadInput
from rewards.config import ObjectiveConfig, PreferencesConfig, Section
from rewards.preferences import parse_preference

MAX_NODES = 10_000
"""Values of a recipe, far above any that a person writes: a small file of aliases can unfold to billions."""
OWN_PACKAGES = ("actors", "learner", "orchestrator", "rewards")
EVALUATION_LATTICE_LIMIT = 5
"""Objectives above which an evaluation grid would no longer be readable in a plot or affordable in a run."""


MethodName = Literal["mi-epo", "mi-epo-scalarized", "mo-odpo", "mo-odpo-per-objective", "rewarded-soups", "ric"]


class PolicyConfig(Section):
    model: str = Field(min_length=1)
    """Hugging Face folder or hub id of the starting policy; it is also the frozen reference."""


class AssetsConfig(Section):
    directory: str = Field(min_length=1)
    """Folder that `{assets}` stands for in the rest of the recipe; may contain `{seed}`."""
    build: Literal["miniature", "dialogues"] | None = None
    """Built on first use when named; otherwise the folder must be there."""
    source: str | None = None
    """Data the build starts from: a file, a `datasets` folder, or `hub:NAME:DATA_DIR:SPLIT`."""

    @model_validator(mode="after")
    def _build_has_its_source(self) -> "AssetsConfig":
        if (self.build == "dialogues") != (self.source is not None):
            raise ValueError(
                f"source goes with build: dialogues and only there, got build {self.build!r}, source {self.source!r}"
            )
        return self


class DataConfig(Section):
    train: str = Field(min_length=1)
    """Prompts to train on: .jsonl, .jsonl.gz, or a folder written by `datasets.save_to_disk`."""
    heldout: str = Field(min_length=1)
    """Prompts to evaluate on, never trained on."""
    prompt_field: str = "prompt"
    max_prompts: int | None = Field(default=None, ge=1)
    """Take only the first so many training prompts."""


class LoopConfig(Section):
    steps: int = Field(ge=1)
    """Optimizer steps."""
    prompts_per_step: int = Field(ge=1)
    responses_per_prompt: int = Field(default=2, ge=2, le=64)
    """Sampled under one w+. Of more than two, each objective's best is paired with its worst."""
    max_staleness: int = Field(default=1, ge=0)
    """Most versions between the policy that samples a batch and the one updated with it (0: strictly on-policy)."""
    max_empty_batches: int = Field(default=5, ge=1)
    """Steps in a row without one usable pair after which the run stops."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Optimizer steps between checkpoints (0: only when stopped); what a kill can cost at most."""
    keep_checkpoints: int = Field(default=2, ge=1)


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
    attainable: str | None = None
    """Dotted path of a function that gives the attainable front in audit scores (only a synthetic task knows it)."""
    audit_statistics: dict[str, str] = Field(default_factory=dict)
    """Name -> dotted path of a function (prompts, responses) -> float, reported beside the audit scores."""


class TelemetryConfig(Section):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when a key is configured, offline otherwise."""
    project: str = "mi-epo"
    samples_per_step: int = Field(default=2, ge=0)


class HealthConfig(Section):
    rule: Literal["warn", "stop"] = "warn"
    """What follows when `metrics.jsonl` names the same problem `patience` steps in a row; a stop keeps the checkpoints
    that are there and makes none."""
    patience: int = Field(default=10, ge=1)
    max_logratio: float = Field(default=200, gt=0)
    """Mean log-ratio of policy to reference (nats per response, either sign) above which it is called exploding."""
    max_skipped_updates: int = Field(default=3, ge=0)
    """Updates with a loss or gradient that is not finite that a run survives: it goes back to its last checkpoint and
    leaves the update of that step out. One more ends it."""


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
    dashboard: bool = True
    """Serve the Ray dashboard of a local cluster, on the loopback address only."""


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    seed: int = Field(default=0, ge=0)
    method: MethodName = "mi-epo"
    assets: AssetsConfig | None = None
    policy: PolicyConfig
    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    preferences: PreferencesConfig = PreferencesConfig()
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig
    loop: LoopConfig
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
        per_pass = self.learner.ranks * self.learner.micro_batch_pairs
        if self.loop.prompts_per_step % per_pass:
            raise ValueError(
                f"loop.prompts_per_step must be a multiple of learner.ranks * learner.micro_batch_pairs = "
                f"{self.learner.ranks} * {self.learner.micro_batch_pairs} = {per_pass}, "
                f"got {self.loop.prompts_per_step}"
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
        if METHODS[self.method].supervised and self.loop.steps < 2:
            raise ValueError(f"loop.steps must be at least 2 under {self.method}, which imitates twice, got 1")
        if METHODS[self.method].experts and fixed is not None:
            raise ValueError(f"preferences.fixed: {self.method} fixes each expert's vector itself, got {list(fixed)}")
        if METHODS[self.method].experts and self.loop.steps % self.num_objectives:
            raise ValueError(
                f"loop.steps must be a multiple of the {self.num_objectives} objectives under {self.method}, which "
                f"trains one expert for each on its share, got {self.loop.steps}"
            )
        if self.evaluate.attainable and self.objectives[0].audit is None:
            raise ValueError(
                "evaluate.attainable is in audit scores, so objectives need an audit judge; they have none"
            )
        return self

    @model_validator(mode="after")
    def _colocated_pairs_fit_together(self) -> "Recipe":
        rollout, learner = self.rollout, self.learner
        num_gpus = (rollout.num_gpus, learner.num_gpus)
        rules = (
            (self.loop.max_staleness == 0, "loop.max_staleness must be 0", self.loop.max_staleness),
            (
                rollout.engines == learner.ranks,
                f"rollout.engines must equal learner.ranks = {learner.ranks}",
                rollout.engines,
            ),
            (
                rollout.tensor_parallel_size == 1,
                "rollout.tensor_parallel_size must be 1",
                rollout.tensor_parallel_size,
            ),
            (
                all(num_gpus) or not any(num_gpus),
                "rollout.num_gpus and learner.num_gpus must both be above 0, or both 0",
                "{:g} and {:g}".format(*num_gpus),
            ),
            (
                round(sum(num_gpus), 4) <= 1,  # Ray counts in ten-thousandths
                "rollout.num_gpus + learner.num_gpus must be at most 1",
                "{:g} + {:g}".format(*num_gpus),
            ),
            (
                rollout.node_labels == learner.node_labels,
                f"rollout.node_labels must equal learner.node_labels = {learner.node_labels}",
                rollout.node_labels,
            ),
        )
        for holds, rule, got in rules if rollout.colocated else ():
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
        judges = [judge for each in self.objectives for judge in (each.scorer, each.audit) if judge is not None]
        functions = [judge.function for judge in judges if judge.type == "python"]
        functions += [*filter(None, [self.evaluate.attainable]), *self.evaluate.audit_statistics.values()]
        own = re.compile(rf"({'|'.join(OWN_PACKAGES)})(\.\w+)*:\w+")  # one name: no module that a module imported
        foreign = [function for function in functions if not own.fullmatch(function)]
        servers = [judge.url for judge in judges if judge.type == "http"]
        return sorted({*foreign, *servers, *filter(None, [self.cluster.address])})

    @property
    def num_objectives(self) -> int:
        return len(self.objectives)

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.objectives)

    @property
    def pairs_per_step(self) -> int:
        """Most pairs of one optimizer step."""
        per_prompt = METHODS[self.method].pairs_per_prompt(self.loop.responses_per_prompt, self.num_objectives)
        return self.loop.prompts_per_step * per_prompt

    @property
    def has_audit(self) -> bool:
        return self.objectives[0].audit is not None

    @property
    def reference_point(self) -> tuple[float, ...]:
        """[K], normalised scores."""
        point = self.evaluate.reference_point
        return point if isinstance(point, tuple) else (point,) * self.num_objectives


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override, fill in and check a recipe. Raises BadInput naming file, key path, rule and value."""
    tree = read_yaml(Path(path))
    for item in overrides or []:
        _apply_override(tree, item)
    return parse_recipe(tree, where=str(path))


def parse_recipe(tree: dict[str, Any], *, where: str) -> Recipe:
    tree = _fill_assets(tree)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise BadInput("\n".join(describe_errors(error, where))) from None


def describe_errors(error: ValidationError, where: str) -> list[str]:
    """One line per problem: place, key path, rule, value."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "recipe"
        rule = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            rule = "unknown key"
        value = "" if item["type"] in ("missing", "value_error") else f", got {item['input']!r:.200}"
        lines.append(f"{where}: {key}: {rule}{value}")
    return lines


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())[:500]}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: must hold a mapping of sections, got {type(tree).__name__}")
    if _is_larger_than(tree, MAX_NODES):
        raise BadInput(f"{path}: must hold at most {MAX_NODES} values, aliases unfolded")
    return tree


def _is_larger_than(tree: Any, limit: int) -> bool:
    """Whether a tree has more nodes than `limit`; an alias counts each time, and counting ends at the limit."""
    pending, count = [tree], 0
    while pending and count <= limit:
        node = pending.pop()
        count += 1
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return count > limit


def dump_recipe(recipe: Recipe) -> str:
    """Resolved recipe as YAML; loads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(tree: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise BadInput(f"override {item!r}: must read section.key=value")
    try:
        value = _parse_value(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput(f"override {item!r}: the value is not valid YAML, got {text!r}") from None
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, item, create=True)
    if isinstance(node, list):
        _child(node, last, item, create=False)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise BadInput(f"override {item!r}: {'.'.join(parents)} is not a section, got {node!r}")


def _parse_value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as text; every user means the number.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _child(node: Any, part: str, item: str, *, create: bool) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise BadInput(f"override {item!r}: {part!r} must be an index below {len(node)}")
        return node[int(part)]
    if not isinstance(node, dict):
        raise BadInput(f"override {item!r}: {part!r} lies below a plain value, got {node!r}")
    if create and node.get(part) is None:
        node[part] = {}
    return node[part]


def _fill_assets(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace `{seed}` in assets.directory and `{assets}` everywhere else; leaves malformed trees to the checker."""
    assets = tree.get("assets")
    if not isinstance(assets, dict) or not isinstance(assets.get("directory"), str):
        return tree
    directory = assets["directory"].replace("{seed}", str(tree.get("seed", 0)))

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return node.replace("{assets}", directory) if isinstance(node, str) else node

    return {
        **fill({key: value for key, value in tree.items() if key != "assets"}),
        "assets": {**assets, "directory": directory},
    }
