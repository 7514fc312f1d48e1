"""What every section of a recipe is made of: its base, and values that several rooms know.

Importing this module needs pydantic only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rewards.environment import MAX_SEED, native_dtype

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


def _plain_types(annotation: object) -> Iterator[object]:
    """What an annotation is made of: the members of its unions and tuples, the types of its literals."""
    members = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, members)
    elif members:
        yield from itertools.chain.from_iterable(map(_plain_types, members))
    else:
        yield annotation


def require_placeholders(
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
