"""The recipe: every room's section composed into one model, with the rules that bind several sections."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from actors.config import RolloutConfig
from learner.config import LearnerConfig
from learner.methods import METHODS, MethodSection, Work, make_method
from orchestrator.packages import OWN_PACKAGES
from orchestrator.sections import (
    AssetsConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    HealthConfig,
    LoopConfig,
    PolicyConfig,
    RefreshConfig,
    TelemetryConfig,
)
from rewards.config import ObjectiveConfig, Panel, PreferencesConfig, panels
from rewards.section import Section, Seed
from rewards.simplex import parse_preference

EVALUATION_LATTICE_LIMIT = 5
"""Objectives above which an evaluation grid would no longer be readable in a plot or affordable in a run."""


def method_section(value: object) -> MethodSection:
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


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Of the recipe: runs, actors and reports are named after it."""
    seed: Seed = 0
    """Of all that is drawn: prompts, vectors, responses, adapters, assets. `{seed}` in `assets.directory` is it."""
    method: Annotated[SerializeAsAny[MethodSection], BeforeValidator(method_section)] = Field(
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
        if self.refresh is not None and self.refresh.every >= self.loop.steps:
            raise ValueError(
                f"refresh.every must be below loop.steps = {self.loop.steps}, or none is due, got {self.refresh.every}"
            )
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
