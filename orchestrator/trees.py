"""YAML as a tree of mappings, lists and plain values: no key twice, no tags, bounded; every YAML is read here.

Numbers are decimal, as people write them: 010 is ten, 1e-4 a number, 12:30 and 0x1F are texts, as a date is.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import BadInput
from orchestrator.files import open_file

MAX_NODES = 10_000
"""Values of a file, far above any that a person writes: a small file of aliases can unfold to billions."""
INT, FLOAT, DATE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
WHOLE = re.compile(r"[-+]?[0-9][0-9_]*$")
DECIMAL = re.compile(
    r"([-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """Resolves plain texts to decimal numbers, where YAML 1.1 reads octal and base 60, and 1e-4 as a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT, DATE)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Quotes what this file or YAML 1.1 would take for something else than a text."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(INT, WHOLE, list("-+0123456789"))
    _kind.add_implicit_resolver(FLOAT, DECIMAL, list("-+.0123456789"))
_Loader.add_constructor(INT, lambda loader, node: int(str(node.value).replace("_", "")))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises BadInput: there is none that can be read; names file, key and lines."""
    if os.path.isfile(path / "config.yaml"):
        raise BadInput(f"{path}: must be a file, got a folder; the recipe of this run is {path / 'config.yaml'}")
    with open_file(path) as file:
        content = file.read()
    try:
        tree = parse_yaml(content.decode(), path)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: must be UTF-8 text: {error.reason} at byte {error.start}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: must hold a mapping of sections, got {type(tree).__name__}")
    return tree


def parse_yaml(text: str, place: object) -> Any:
    """The value that a text says. Raises BadInput, with `place` in front: no YAML, a key twice, or too large."""
    try:
        root = yaml.compose(text, Loader=_Loader)
        repeated = [] if root is None else list(_repeated_keys(root, (), set()))
        # Not from the repeated ones, of which Python would keep the last and say nothing.
        tree = None if root is None or repeated else _Loader("").construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{place}: not valid YAML: {' '.join(str(error).split())[:500]}") from None
    if repeated:
        raise BadInput("\n".join(f"{place}: {problem}" for problem in repeated))
    if _is_larger_than(tree, MAX_NODES):
        raise BadInput(f"{place}: must hold at most {MAX_NODES} values, aliases unfolded")
    return tree


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """As `parse_yaml` reads it back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _repeated_keys(node: yaml.Node, path: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """What to say of each key that a mapping has twice; one that a merge (`<<`) brings along may be set again."""
    if id(node) in seen:  # by an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, str(index)), seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            identity, name, line = (key.tag, str(key.value)), (*path, str(key.value)), key.start_mark.line + 1
            if identity in first:
                yield f"{'.'.join(name)}: must stand once, stands in lines {first[identity]} and {line}"
            first.setdefault(identity, line)
            yield from _repeated_keys(value, name, seen)


def _is_larger_than(tree: Any, limit: int) -> bool:
    """Whether a tree has more nodes than `limit`; an alias counts each time, and counting ends at the limit."""
    pending, count = [tree], 0
    while pending and count <= limit:
        node = pending.pop()
        count += 1
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return count > limit
