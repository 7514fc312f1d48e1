"""The recipe's objectives and preferences: how responses are scored and how weights reach the policy.

Importing this module needs pydantic only.
"""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from rewards.environment import MAX_SEED, native_dtype
from rewards.paths import Found, FunctionName

CHAT_TEMPLATE = "{prompt} {weights}"
REPEATED = "{repeated}"
LABEL = r"^[A-Za-z0-9]([A-Za-z0-9./_-]*[A-Za-z0-9])?$"
NodeLabels = dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(pattern=LABEL)]]
_NATIVE = BeforeValidator(lambda value: native_dtype() if value == "native" else value)
Dtype = Annotated[Literal["auto", "float32", "bfloat16"], _NATIVE]
JudgeDtype = Annotated[Literal["float32", "bfloat16", "float16"], _NATIVE]
"""Of a model's weights and products. `native` is read as what is fastest on this machine's processor: bfloat16 where it
multiplies bfloat16 itself, else float32; the recipe of the run says which."""


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
ObjectiveName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"must differ, got {', '.join(names)}")
    return names


ObjectiveNames = Annotated[tuple[ObjectiveName, ...], AfterValidator(_distinct)]
"""In the order of w."""


class Section(BaseModel):
    """Base of every recipe section in every room: unknown keys refused, values fixed once read, no NaN or infinity.

    A number is a number: true and false, which YAML also reads in `on` and `no`, are none.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,  # so that a schema and docs/reference.md tell what a field means
    )

    @model_validator(mode="before")
    @classmethod
    def _no_number_is_true_or_false(cls, values: object) -> object:
        for name, value in values.items() if isinstance(values, dict) else ():
            given = value if isinstance(value, list | tuple) else (value,)
            if name in cls.model_fields and any(isinstance(item, bool) for item in given):
                plain = list(_plain_types(cls.model_fields[name].annotation))
                if bool not in plain and (int in plain or float in plain):
                    raise ValueError(f"{name} takes numbers, not true or false, got {value!r}")
        return values


class HuggingFaceScorerConfig(Section):
    """A sequence classifier from a folder or a hub id; the score is one of its logits."""

    type: Literal["huggingface"] = "huggingface"
    model: Found = Field(min_length=1)
    """Folder or hub id of a sequence classifier with its tokenizer."""
    template: str = "{prompt} {response}"
    """What the classifier reads. ``{response}`` is required, ``{prompt}`` is optional, each at most once."""
    dtype: JudgeDtype = "float32"
    """Of its weights and products. `native`: bfloat16 where this machine's processor multiplies it, else float32."""
    max_length: int = Field(default=512, ge=1)
    """Longest input in tokens, special tokens included. Longer inputs lose the start of the prompt."""
    batch_size: int = Field(default=64, ge=1)
    """Most responses in one forward pass."""
    label: int = Field(default=0, ge=0)
    """Index of the logit that is the score."""
    negate: bool = False
    """Flip the sign, for models whose high logit is bad (a cost, a toxicity)."""
    pair: bool = False
    """The tokenizer gets two texts, what stands before the response and the response, instead of one."""
    head: str | None = Field(default=None, pattern=r"^\w+$")
    """What the checkpoint calls the layer that gives one score, where transformers would call it ``score``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU that the objective has by `num_gpus`, else the CPU. `cuda` needs one."""

    @property
    def classifier(self) -> HuggingFaceScorerConfig:
        """The same of all scores that are read of one pass of it."""
        return self.model_copy(update={"label": 0, "negate": False})

    @field_validator("template")
    @classmethod
    def _template_has_a_response(cls, template: str) -> str:
        _require_placeholders(template, required=("response",), optional=("prompt",))
        return template

    @model_validator(mode="after")
    def _a_pair_ends_with_its_response(self) -> HuggingFaceScorerConfig:
        if self.pair and not self.template.endswith("{response}"):
            raise ValueError(f"template must end with {{response}} when pair is set, got {self.template!r}")
        return self


def _free_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    taken = [name for name in columns if name in ("prompts", "responses") or columns.count(name) > 1]
    if taken:
        raise ValueError(f"must differ from each other and from prompts and responses, got {taken[0]!r}")
    return columns


ColumnNames = Annotated[tuple[str, ...], AfterValidator(_free_columns)]


class PythonScorerConfig(Section):
    """A function ``fn(prompts, responses, **columns, **options) -> sequence of float | None``."""

    type: Literal["python"] = "python"
    function: FunctionName
    """``file.py:name``, beside the recipe or in the working directory, or ``package.module:name``. `plan` and the start
    of a run ask it for one score, in a process of its own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of every call."""
    columns: ColumnNames = ()
    """Keys of the rows of `data.train` and `data.heldout` whose values the function gets too, each as an argument of
    that name: a list as long as the responses. With a reference answer among them, a reward can be verified."""

    @model_validator(mode="after")
    def _columns_are_arguments(self) -> PythonScorerConfig:
        for name in self.columns:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"columns must be names that an argument can have, got {name!r}")
            if name in self.options:
                raise ValueError(f"columns must differ from options, both have {name!r}")
        return self


class HTTPScorerConfig(Section):
    """A server: POST ``{"prompts": [...], "responses": [...]}``, answered by ``{"scores": [number or null, ...]}``."""

    type: Literal["http"] = "http"
    url: str
    """Where to post; http or https, without a user name or a password."""
    timeout_s: float = Field(default=30, gt=0)
    """Longest wait for one try of one batch."""
    retries: int = Field(default=3, ge=0)
    """Further tries after a refused connection, a timeout, or status 429, 500, 502, 503 or 504."""
    batch_size: int = Field(default=64, ge=1)
    """Most responses in one request."""
    columns: ColumnNames = ()
    """Keys of the rows of `data.train` and `data.heldout` whose values are sent as well:
    ``"columns": {name: [one for each response]}``."""
    token_env: str | None = None
    """Environment variable that holds a bearer token. The token itself never stands in a recipe."""

    @field_validator("token_env")
    @classmethod
    def _token_env_is_a_variable(cls, token_env: str | None) -> str | None:
        if token_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", token_env):
            raise ValueError("must be the name of an environment variable")  # unsaid what it is: perhaps the token
        return token_env

    @field_validator("url")
    @classmethod
    def _url_is_plain_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"must look like http://host:port/path or https://host/path, got {url!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a user name or password; name the token's variable in token_env")
        try:
            _ = parts.hostname.encode("idna"), parts.port
        except ValueError as error:
            raise ValueError(f"must name a host and a port that there can be, got {url!r}: {error}") from None
        return url


SingleScorerConfig = Annotated[
    HuggingFaceScorerConfig | PythonScorerConfig | HTTPScorerConfig,
    Field(discriminator="type"),
]


class EnsembleScorerConfig(Section):
    """Several judges of one thing, whose disagreement counts against a response."""

    type: Literal["ensemble"] = "ensemble"
    members: tuple[SingleScorerConfig, ...] = Field(min_length=2)
    """Such as reward models fitted from different seeds and halves of the data. Those of `fit-reward` are brought to
    one scale; others must be on one."""
    rule: Literal["lower", "least"] = "lower"
    """`lower`: their mean less `c` standard deviations of theirs. `least`: the lowest of them."""
    c: float = Field(default=1.0, ge=0)
    """How much their disagreement costs."""


ScorerConfig = Annotated[
    HuggingFaceScorerConfig | PythonScorerConfig | HTTPScorerConfig | EnsembleScorerConfig,
    Field(discriminator="type"),
]


def single(judge: ScorerConfig | None) -> tuple[SingleScorerConfig, ...]:
    """The members of an ensemble, another judge itself, nobody without one."""
    if isinstance(judge, EnsembleScorerConfig):
        return judge.members
    return () if judge is None else (judge,)


def each_changed(judge: ScorerConfig, change: Callable[[SingleScorerConfig], SingleScorerConfig]) -> ScorerConfig:
    """The judge, or every member of it, as `change` makes it."""
    if isinstance(judge, EnsembleScorerConfig):
        return judge.model_copy(update={"members": tuple(map(change, judge.members))})
    return change(judge)


ROLES = ("scorer", "audit", "annotator")
"""What a judge can be to an objective; keys of its section."""


def refreshed(name: str, judge: ScorerConfig, folder: Path) -> ScorerConfig:
    """The judge of an objective as it was fitted further: of `folder`/NAME, its members of NAME-1, NAME-2 ..."""
    if isinstance(judge, EnsembleScorerConfig):
        numbered = enumerate(judge.members, start=1)
        members = tuple(each.model_copy(update={"model": str(folder / f"{name}-{n}")}) for n, each in numbered)
        return judge.model_copy(update={"members": members})
    return judge.model_copy(update={"model": str(folder / name)})


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
            _require_placeholders(weight, required=("name", "weight"))
        elif weight.count(REPEATED) > 1 or "{name}" in weight or "{weight}" in weight:
            raise ValueError(f"must contain {REPEATED} once, without {{name}} and {{weight}}, got {weight!r}")
        return weight

    @model_validator(mode="after")
    def _weights_stand_in_one_place(self) -> ConditioningConfig:
        for name in ("system", "chat_options"):
            if getattr(self, name) and self.style != "chat":
                raise ValueError(f"{name} is for style 'chat' only, got style {self.style!r}")
        if self.system is not None and "{weights}" in self.system:
            _require_placeholders(self.system, required=("weights",), place="system")
            _require_placeholders(self.template, required=("prompt",), place="template")
        else:
            _require_placeholders(self.template, required=("prompt", "weights"), place="template")
        return self


class PreferencesConfig(Section):
    """Where training weights come from and how they are printed."""

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


def _plain_types(annotation: object) -> Iterator[object]:
    """What an annotation is made of: the members of its unions and tuples, the types of its literals."""
    members = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, members)
    elif members:
        yield from itertools.chain.from_iterable(map(_plain_types, members))
    else:
        yield annotation


def _require_placeholders(
    template: str, *, required: tuple[str, ...], optional: tuple[str, ...] = (), place: str = ""
) -> None:
    """Refuse a template whose placeholders are missing or repeated. Other braces are plain text."""
    prefix = f"{place} " if place else ""
    for name in required:
        if template.count("{" + name + "}") != 1:
            raise ValueError(f"{prefix}must contain {{{name}}} exactly once, got {template!r}")
    for name in optional:
        if template.count("{" + name + "}") > 1:
            raise ValueError(f"{prefix}may contain {{{name}}} at most once, got {template!r}")
