"""docs/reference.md: every key of a recipe and of a fit, from the models that read them.

`python -m orchestrator.bench.reference > docs/reference.md` writes it again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from learner.methods import METHODS
from orchestrator.bench.tables import as_markdown
from orchestrator.config import Recipe
from orchestrator.tasks.fitting.config import PolicyFitConfig, RewardFitConfig

PAGE = """# Recipe reference

A recipe is a YAML file with a section for each part. Unknown keys are refused. Any value can be given on the command
line as `section.key=value`, an element of a list by its number: `objectives.0.num_cpus=1`. `mi-epo plan RECIPE` checks
all of it and starts nothing.

{recipe}

# Fits

What the YAML files of `mi-epo fit-policy` and `mi-epo fit-reward` hold.

{fits}
"""
NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
ABSTRACT = ("MethodSection",)
"""Bases that only their own kinds stand for, which have sections of their own."""

Schema = Mapping[str, Any]
Rows = list[list[str]]
"""Of [key, type, default, meaning]."""


def recipe_page() -> str:
    """The page as markdown."""
    titles: dict[str, str] = {}
    top, *others = sections(Recipe, "The recipe", titles)
    recipe = [top, *_methods(), *others]
    fits = [*sections(PolicyFitConfig, "fit-policy", titles), *sections(RewardFitConfig, "fit-reward", titles)]
    return PAGE.format(recipe=_markdown(recipe), fits=_markdown(fits))


def sections(model: type[BaseModel], title: str, titles: dict[str, str]) -> list[tuple[str, Rows]]:
    """(title, rows) of a model and of every section in it.

    Args:
        titles: name of a section's class -> the title under which it stands, its place and, where it may be one of
            several, its `type`; those that are in it are referred to, the others are added.
    """
    whole = model.model_json_schema()
    definitions = {name: of for name, of in whole.get("$defs", {}).items() if name not in ABSTRACT}
    waiting: list[tuple[str, str, Schema]] = [(title, "", whole)]  # title, what its keys begin with, schema
    found = []
    while waiting:
        name, before, schema = waiting.pop(0)
        inside: list[tuple[str, str, Schema]] = []
        for key, value in schema["properties"].items():
            place = f"{before}{key}{'[]' if value.get('type') == 'array' else ''}"
            for definition in _references(value):
                if definition not in definitions or definition in titles:
                    continue
                kind = definitions[definition]["properties"].get("type", {}).get("const")
                titles[definition] = f"{place}, type {kind}" if kind else place
                inside.append((titles[definition], f"{place}.", definitions[definition]))
        waiting = inside + waiting
        rows = [_row(key, value, key in schema.get("required", ()), titles) for key, value in _own(schema)]
        found.append((name, rows))
    return found


def _methods() -> Iterator[tuple[str, Rows]]:
    for name, method in METHODS.items():
        if rows := [_row(key, value, False, {}) for key, value in _own(method.Config.model_json_schema())]:
            yield f"method, type {name}", rows


def _own(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """What a section holds besides the `type` that its title tells."""
    return ((key, value) for key, value in schema["properties"].items() if key != "type")


def _row(key: str, schema: Schema, required: bool, titles: Mapping[str, str]) -> list[str]:
    inside = [titles[name] for name in _references(schema) if name in titles]
    kind = (
        _type(schema) if not _references(schema) else "section" if schema.get("type") != "array" else "list of sections"
    )
    default = "**required**" if required else _default(schema)
    links = ", ".join(f"[{title}](#{anchor(title)})" for title in inside)
    meaning = " ".join(filter(None, (" ".join(schema.get("description", "").split()), links and f"See {links}.")))
    return [f"`{key}`", kind, default, meaning.replace("``", "`")]


def _default(schema: Schema) -> str:
    """Empty where it is a section's, whose own keys tell theirs."""
    if "$ref" in schema:
        return ""
    value = schema.get("default", {} if schema.get("type") == "object" else [])
    return f"`{value if isinstance(value, str) and value.strip() else json.dumps(value)}`"


def _type(schema: Schema) -> str:
    options = schema.get("anyOf", schema.get("oneOf"))
    if options:
        return " or ".join(map(_type, options))
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        parts = schema.get("prefixItems")
        return f"{len(parts)} of: {_type(parts[0])}" if parts else f"list of: {_type(schema['items'])}"
    if kind == "object":
        return "mapping"
    bounds = " and ".join(f"{sign} {schema[name]:.10g}" for name, sign in BOUNDS.items() if name in schema)
    return f"{NAMES.get(str(kind), 'anything')} {bounds}".strip()


def _references(schema: Schema) -> list[str]:
    """Names of the definitions that a value may be one of, or be a list of."""
    if "$ref" in schema:
        return [schema["$ref"].rsplit("/", 1)[1]]
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *filter(None, [schema.get("items")])]
    return [name for option in inner for name in _references(option)]


def anchor(title: str) -> str:
    """As code forges make it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _markdown(found: list[tuple[str, Rows]]) -> str:
    header = ["key", "type", "default", "meaning"]
    return "\n\n".join(f"## {title}\n\n{as_markdown([header, *rows])}" for title, rows in found)


if __name__ == "__main__":
    print(recipe_page(), end="")
