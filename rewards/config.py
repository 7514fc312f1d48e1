"""The recipe's objectives and preferences: who judges each objective, and how weights reach the policy.

Importing this module needs pydantic only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rewards.judge_sections import HuggingFaceScorerConfig, ScorerConfig, SingleScorerConfig, single
from rewards.section import NodeLabels, ObjectiveName, Section, require_placeholders

CHAT_TEMPLATE = "{prompt} {weights}"
REPEATED = "{repeated}"
ROLES = ("scorer", "audit", "annotator")
"""What a judge can be to an objective; keys of its section."""


class ObjectiveConfig(Section):
    """One thing a response can be good at, and who judges it."""

    name: ObjectiveName
    """Written into prompts, logs and plots."""
    scorer: ScorerConfig
    audit: ScorerConfig | None = None
    """A second, independent judge. It is used in evaluation only; the policy never learns from it."""
    annotator: ScorerConfig | None = None
    """Whose word is better than the scorer's, and dearer: it is asked about few of the policy's answers, and the scorer
    is fitted further to what it says (`refresh`). The scorer must be a reward model, or an ensemble of such."""
    replicas: int = Field(default=1, ge=1)
    """Reward actors that share this objective's work."""
    num_cpus: float = Field(default=0.1, ge=0)
    """CPUs Ray reserves for each replica."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of each replica; a fraction shares a device."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Only on nodes that carry all of these Ray labels."""

    @property
    def judges(self) -> dict[str, ScorerConfig]:
        """By role, those that it has."""
        given = {role: getattr(self, role) for role in ROLES}
        return {role: judge for role, judge in given.items() if judge is not None}

    @property
    def single_judges(self) -> list[SingleScorerConfig]:
        """All of them, the members of ensembles each."""
        return [each for judge in self.judges.values() for each in single(judge)]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the data, that its judges ask for."""
        asked = (judge.columns for judge in self.single_judges if not isinstance(judge, HuggingFaceScorerConfig))
        return tuple(dict.fromkeys(itertools.chain.from_iterable(asked)))

    @model_validator(mode="after")
    def _a_gpu_is_reserved_where_one_is_named(self) -> ObjectiveConfig:
        for role, given in self.judges.items():
            # without one reserved, a process sees none
            cuda = any(getattr(judge, "device", None) == "cuda" for judge in single(given))
            if cuda and not self.num_gpus:
                raise ValueError(f"num_gpus must be above 0 where {role}.device is cuda, got {self.num_gpus:g}")
        return self

    @model_validator(mode="after")
    def _what_is_annotated_can_be_fitted(self) -> ObjectiveConfig:
        for judge in single(self.scorer) if self.annotator is not None else ():
            plain = {"label": 0, "negate": False, "pair": False, "head": None}
            if not isinstance(judge, HuggingFaceScorerConfig) or judge.model_copy(update=plain) != judge:
                raise ValueError(
                    "annotator needs a scorer that fit-reward could have made (huggingface, without label, negate, "
                    f"pair and head, or an ensemble of such), got {judge.type} {getattr(judge, 'model', '')}".rstrip()
                )
        return self


Panel = tuple[ObjectiveConfig, ...]
"""Objectives that one process judges: their scores are different labels of one classifier."""


def panels(objectives: Sequence[ObjectiveConfig]) -> list[Panel]:
    """The objectives by who judges them, each panel where its first objective stands.

    Those share a classifier whose sections say the same but for name, audit, and the scorer's label and sign. One with
    an annotator shares nothing: its classifier changes.
    """
    found: list[list[ObjectiveConfig]] = []
    for objective in objectives:
        judge = _classifier_of(objective)
        shared = (panel for panel in found if judge is not None and _classifier_of(panel[0]) == judge)
        panel = next(shared, None)
        if panel is None:
            found.append([objective])
        else:
            panel.append(objective)
    return [tuple(panel) for panel in found]


def panel_name(panel: Panel) -> str:
    """Example: "helpfulness+harmlessness" """
    return "+".join(objective.name for objective in panel)


def _classifier_of(objective: ObjectiveConfig) -> ObjectiveConfig | None:
    """The section without what may differ within a panel; None of a judge of another kind."""
    scorer = objective.scorer
    if not isinstance(scorer, HuggingFaceScorerConfig) or objective.annotator is not None:
        return None
    return objective.model_copy(update={"name": "", "audit": None, "scorer": scorer.classifier})


class ConditioningConfig(Section):
    """How the weights are written into the policy's prompt: G(x, w).

    ``text``: ``template`` is the whole input of the model. ``chat``: ``template`` is the user's turn, rendered by the
    tokenizer's chat template; ``{weights}`` may stand in ``system`` instead.
    """

    style: Literal["text", "chat"] = "text"
    """`text`: `template` is the whole input of the model. `chat`: it is the user's turn in the tokenizer's chat
    template."""
    template: str = "Human: {prompt} {weights} Assistant:"
    """``{prompt}`` and ``{weights}`` once each. With ``style: chat`` the default is ``{prompt} {weights}``."""
    weight: str = "<{name}> {weight}"
    """One objective's weight: ``{name}`` and ``{weight}`` once each, or ``{repeated}``, which is the name as many times
    as the weight has tenths: a small model reads how often a word stands there better than digits."""
    separator: str = " "
    """Between two objectives' weights, and between the names that ``{repeated}`` writes."""
    system: str | None = None
    """System message (``chat`` only)."""
    chat_options: dict[str, bool | int | str] = Field(default_factory=dict)
    """What the chat template takes besides the messages (``chat`` only), such as ``{enable_thinking: false}``."""

    @model_validator(mode="before")
    @classmethod
    def _chat_has_its_own_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("style") == "chat" and "template" not in values:
            weights_in_system = "{weights}" in str(values.get("system") or "")
            return {**values, "template": "{prompt}" if weights_in_system else CHAT_TEMPLATE}
        return values

    @field_validator("weight")
    @classmethod
    def _weight_names_its_objective(cls, weight: str) -> str:
        if REPEATED not in weight:
            require_placeholders(weight, required=("name", "weight"))
        elif weight.count(REPEATED) > 1 or "{name}" in weight or "{weight}" in weight:
            raise ValueError(f"must contain {REPEATED} once, without {{name}} and {{weight}}, got {weight!r}")
        return weight

    @model_validator(mode="after")
    def _weights_stand_in_one_place(self) -> ConditioningConfig:
        for name in ("system", "chat_options"):
            if getattr(self, name) and self.style != "chat":
                raise ValueError(f"{name} is for style 'chat' only, got style {self.style!r}")
        if self.system is not None and "{weights}" in self.system:
            require_placeholders(self.system, required=("weights",), place="system")
            require_placeholders(self.template, required=("prompt",), place="template")
        else:
            require_placeholders(self.template, required=("prompt", "weights"), place="template")
        return self


class PreferencesConfig(Section):
    """Where training weights come from and how they are printed."""

    draw: Literal["dirichlet", "grid"] = "dirichlet"
    """Where vectors come from: a symmetric Dirichlet, or the grid of the evaluation, each vector as likely."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of the symmetric Dirichlet: below 1 favours the corners, 1 is uniform."""
    fixed: tuple[float, ...] | None = None
    """Train under this one vector (in the objectives' order) instead of drawing w+; w- is drawn all the same."""
    negatives: int = Field(default=1, ge=1, le=32)
    """Vectors w- that each response is told apart from (1 in the paper; more make L_YW an InfoNCE bound)."""
    min_distance: float = Field(default=0.0, ge=0, le=1)
    """Least L1 distance of every w- from w+ (0, the paper's: any); some corner is at least 1 away from any w+."""
    decimals: int = Field(default=1, ge=1, le=3)
    """Digits after the point in a printed weight. Weights are rounded to them, so text and loss say the same."""
    conditioning: ConditioningConfig = Field(default_factory=ConditioningConfig)

    @model_validator(mode="after")
    def _names_are_counted_in_tenths(self) -> PreferencesConfig:
        if REPEATED in self.conditioning.weight and self.decimals != 1:
            raise ValueError(f"decimals must be 1 where conditioning.weight holds {REPEATED}, got {self.decimals}")
        return self
