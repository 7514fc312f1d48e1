"""The file that a recipe comes from.

A recipe is YAML; dotted overrides (`learner.learning_rate=1e-4`, `objectives.0.scorer.model=./rm`) are applied to the
parsed tree before it is checked, so an override obeys the same rules as the file. `{seed}` in `assets.directory` and
`{assets}` in any other string are filled in before checking.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from learner.methods import METHODS, adopt
from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.files import open_file
from orchestrator.trees import dump_yaml, parse_yaml, read_yaml
from rewards.environment import one_line
from rewards.paths import BESIDE, find
from rewards.section import Section
from rewards.strict_json import parse_json

G = TypeVar("G")
M = TypeVar("M")
S = TypeVar("S", bound=Section)


MOVED = {
    "learner.beta_c": "method.beta_c",
    "learner.beta_w": "method.beta_w",
    "learner.stop_gradient": "method.stop_gradient",
    "learner.length_normalized": "method.length_normalized",
    "learner.min_margin": "method.min_margin",
    "learner.routing": "method.routing",
    "learner.micro_batch_pairs": "learner.micro_batch_tokens",
    "learner.micro_batch_prompts": "learner.micro_batch_tokens",
}
"""Keys of earlier recipes -> where they stand now."""
INDEX = re.compile("[0-9]{1,4}")
"""Of an element of a list; recipes hold no longer ones."""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override, fill in and check a recipe. Raises BadInput naming file, key path, rule and value.

    Paths are found beside it, else in the working directory (`rewards.paths.find`).
    """
    tree, folder = read_yaml(Path(path)), Path(path).parent
    _apply_overrides(tree, overrides or [])
    # A run's own recipe holds paths that were found; what lies beside it under such a name (its policy!) is another.
    beside = None if (folder / "run.json").exists() else folder
    return parse_recipe(tree, where=str(path), beside=beside)


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with some of its keys changed, as the command line would."""
    tree = recipe.model_dump(mode="json")
    _apply_overrides(tree, overrides)
    return parse_recipe(tree, where=recipe.name)


def parse_recipe(tree: dict[str, Any], *, where: str, beside: Path | None = None) -> Recipe:
    """Fill in and check a recipe, whose relative paths may be found in the folder `beside` it. Raises BadInput."""
    tree = _fill_assets(tree, beside)
    moved = [f"{where}: {old}: moved to {new}" for old, new in MOVED.items() if _holds(tree, old)]
    if moved:
        raise BadInput("\n".join(moved))
    return check(partial(Recipe.model_validate, context={BESIDE: beside}), tree, where)


def _holds(tree: dict[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    return isinstance(tree.get(section), dict) and name in tree[section]


def check(validate: Callable[[G], M], given: G, where: object) -> M:
    """`given` by a model's `validate`; BadInput with one line per problem: place, key path, rule, value."""
    try:
        return validate(given)
    except ValidationError as error:
        missing: list[str] = []
        lines: dict[str, str] = {}
        for item in error.errors():
            key = _key(item["loc"], given)
            if item["type"] == "missing":
                missing.append(".".join(filter(None, (key, str(item["loc"][-1])))))
                continue
            rule = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            value = "" if item["type"] == "value_error" else f", got {item['input']!r:.200}"
            # Of a value that may be of several kinds, the first kind's rule.
            lines.setdefault(key, f"{where}: {key or 'recipe'}: {rule}{value}")
        required = [f"{where}: {', '.join(missing)}: Field required"] if missing else []
        raise BadInput("\n".join([*required, *lines.values()])) from None


def _key(location: Sequence[str | int], given: object) -> str:
    """The key path of a location in what was given; pydantic's also names the member of a union that it tried."""
    parts = []
    for part in location:
        inside = dict(enumerate(given)) if isinstance(given, list | tuple) else given
        if isinstance(inside, dict) and part in inside:
            given = inside[part]
            parts.append(str(part))
    return ".".join(parts)


def read_record(kind: type[S], file: Path) -> S:
    """What a run wrote into a JSON file, as the section that it is. Raises BadInput when there is none or it is not."""
    with open_file(file) as opened:
        content = opened.read()
    try:
        record = parse_json(content)
    except ValueError as error:
        raise BadInput(f"{file}: not valid JSON: {one_line(error)}") from None
    return check(kind.model_validate, record, file)


def dump_recipe(recipe: Recipe) -> str:
    """Resolved recipe as YAML; loads back to an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _apply_overrides(tree: dict[str, Any], items: Sequence[str]) -> None:
    """In order. `method=NAME` keeps of the method's settings what the other method has too."""
    for item in items:
        method = tree.get("method", "mi-epo")
        settings = {"type": method} if isinstance(method, str) else method
        name = item.removeprefix("method=")
        if isinstance(settings, dict) and name != item and name in METHODS:
            tree["method"] = adopt(name, settings)
            continue
        if item.startswith("method.") and isinstance(settings, dict):
            tree["method"] = settings
        _apply_override(tree, item)


def _apply_override(tree: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise BadInput(f"override {item!r:.200}: must read section.key=value")
    value = parse_yaml(text, f"override {item!r:.200}")
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
        raise BadInput(f"override {item!r:.200}: {'.'.join(parents)} is not a section, got {node!r}")


def _child(node: Any, part: str, item: str, *, create: bool) -> Any:
    if isinstance(node, list):
        if not INDEX.fullmatch(part) or int(part) >= len(node):
            raise BadInput(f"override {item!r:.200}: {part!r:.80} must be an index below {len(node)}")
        return node[int(part)]
    if not isinstance(node, dict):
        raise BadInput(f"override {item!r:.200}: {part!r} lies below a plain value, got {node!r}")
    if create and node.get(part) is None:
        node[part] = {}
    return node[part]


def _fill_assets(tree: dict[str, Any], beside: Path | None) -> dict[str, Any]:
    """Replace `{seed}` in assets.directory and `{assets}` everywhere else; leaves malformed trees to the checker."""
    assets = tree.get("assets")
    if not isinstance(assets, dict) or not isinstance(assets.get("directory"), str):
        return tree
    try:
        directory = find(assets["directory"].replace("{seed}", str(tree.get("seed", 0))), beside)
    except ValueError:
        return tree

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
