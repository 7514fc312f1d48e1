"""Who scores: the sections of single judges and of ensembles.

Importing this module needs pydantic only.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from rewards.paths import Found, FunctionName
from rewards.section import JudgeDtype, Section, require_placeholders


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
        require_placeholders(template, required=("response",), optional=("prompt",))
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


def refreshed(name: str, judge: ScorerConfig, folder: Path) -> ScorerConfig:
    """The judge of an objective as it was fitted further: of `folder`/NAME, its members of NAME-1, NAME-2 ..."""
    if isinstance(judge, EnsembleScorerConfig):
        numbered = enumerate(judge.members, start=1)
        members = tuple(each.model_copy(update={"model": str(folder / f"{name}-{n}")}) for n, each in numbered)
        return judge.model_copy(update={"members": members})
    return judge.model_copy(update={"model": str(folder / name)})
