"""Names of other packages that are theirs alone: which ones the rooms use, why, and for which version each was read.

Such a name may go or mean something else with any release. A new version of a package therefore fails here until its
names have been read again and this table says so; so does a name that is new, and one that is no longer used.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("actors", "learner", "orchestrator", "rewards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """Example: Private(package="ray", version="2.60.0", why="next() waits without end for a stream whose node is gone")

    `package` is named as in pyproject.toml, `version` is the one whose sources were read.
    """

    package: str
    version: str
    why: str


def ray(why: str) -> Private:
    return Private(package="ray", version="2.60.0", why=why)


def deepspeed(why: str) -> Private:
    return Private(package="deepspeed", version="0.19.8", why=why)


def transformers(why: str) -> Private:
    return Private(package="transformers", version="5.19.0", why=why)


def vllm(why: str) -> Private:
    return Private(package="vllm", version="0.32.0", why=why)


_MOMENTS = "ZeRO has no public way to give its optimizer the moments of a checkpoint before its first step"
_SHAPE = "nothing public tells the full shape of a parameter that ZeRO-3 has partitioned, or that it has"
_HEAD = "ray.init tells neither that a head refused the token nor which Ray it runs; this asks the head itself"
_ABORTED = "elements of an aborted update stay counted in half-received layers, and nothing public drops them"

KNOWN: dict[tuple[str, str], Private] = {  # (file, name) -> what it is
    ("actors/weights.py", "get_layerwise_info"): vllm(_ABORTED),
    ("actors/weights.py", "load_numel"): vllm(_ABORTED),
    ("actors/weights.py", "loaded_weights"): vllm(_ABORTED),
    ("learner/backend.py", "__compatible_ops__"): deepspeed(
        "the one way to keep it from probing every operator with the compiler, and from building one of inference"
    ),
    ("learner/checkpoint.py", "_lazy_init_hp_params_optimizer_state"): deepspeed(_MOMENTS),
    ("learner/checkpoint.py", "fp32_partitioned_groups_flat"): deepspeed(_MOMENTS),
    ("learner/policy.py", "_weight_conversions"): transformers(
        "which conversions a load has used; get_model_conversion_mapping tells all that are registered"
    ),
    ("learner/weights.py", "ds_id"): deepspeed(_SHAPE),
    ("learner/weights.py", "ds_shape"): deepspeed(_SHAPE),
    ("orchestrator/cluster/connection.py", "ray._private.gcs_utils"): ray(_HEAD),
    ("orchestrator/cluster/connection.py", "ray.core.generated.gcs_service_pb2"): ray(_HEAD),
    ("orchestrator/cluster/connection.py", "ray.core.generated.gcs_service_pb2_grpc"): ray(_HEAD),
    ("orchestrator/run/sampling.py", "_next_sync"): ray("next() waits without end for a stream whose node is gone"),
}
INTERNALS = frozenset({name for _, name in KNOWN if not name.startswith("_")}) | {
    *("ds_tensor", "ds_numel", "ds_status", "single_partition_of_fp32_groups", "model_executor", "model_runner"),
    *("driver_worker", "engine_core", "worker_for_store_weights", "core_worker", "global_worker"),
}
"""Names without a leading underscore that are no part of any documented interface."""
INTERNAL_MODULES = ("ray.core.generated",)
PYTHONS = frozenset(
    {
        "_exit",
        "__cause__",
        "__class__",
        "__dict__",
        "__file__",
        "__init__",
        "__module__",
        "__name__",
        "__setattr__",
        "__version__",
    }
)


def private_names(tree: ast.AST) -> Iterator[str]:
    """Foreign private names in a file: attributes, keywords, texts given to getattr and its like, modules.

    What the file defines or assigns itself is its own.
    """
    own = set(own_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg and is_private(node.arg):
            yield node.arg
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            name = getattr(node.args[1], "value", None) if len(node.args) > 1 else None
            if isinstance(name, str) and is_private(name) and name not in own:
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module:
            if is_internal_module(node.module):
                yield node.module
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_internal_module(alias.name))


def own_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def is_private(name: str) -> bool:
    return name in INTERNALS or (name.startswith("_") and name.strip("_") != "" and name not in PYTHONS)


def is_internal_module(module: str) -> bool:
    hidden = any(part.startswith("_") and part != "__future__" for part in module.split("."))
    return hidden or module.startswith(INTERNAL_MODULES)


def found_in(root: Path) -> set[tuple[str, str]]:
    return {
        (str(path.relative_to(root)), name)
        for room in ROOMS
        for path in sorted((root / room).rglob("*.py"))
        for name in private_names(ast.parse(path.read_text()))
    }


def pinned_versions() -> dict[str, str]:
    """Distribution -> version, of everything that pyproject.toml pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    return {item.partition("==")[0].partition("[")[0]: item.partition("==")[2] for item in asked}


def test_every_private_name_in_use_is_known_and_every_known_one_in_use() -> None:
    found = found_in(ROOT)
    assert found - KNOWN.keys() == set(), "new: is there no public name? then it belongs into the table"
    assert KNOWN.keys() - found == set(), "no longer used"


@pytest.mark.parametrize("package", sorted({private.package for private in KNOWN.values()}))
def test_private_names_were_read_in_the_version_that_is_pinned(package: str) -> None:
    read_in = {private.version for private in KNOWN.values() if private.package == package}
    assert read_in == {pinned_versions()[package]}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("stream._next_sync(timeout_s=1)", "_next_sync"),
        ("getattr(optimizer, '_link', None)", "_link"),
        ("hasattr(parameter, 'ds_tensor')", "ds_tensor"),
        ("load(name, _raise=False)", "_raise"),
        ("def f():\n    from ray._private.worker import global_worker as worker", "ray._private.worker"),
        ("import vllm._custom_ops", "vllm._custom_ops"),
        ("from torch import _dynamo", "_dynamo"),
        ("llm.llm_engine.model_executor.driver_worker", "model_executor"),
        ("tensor._version = 3", "_version"),
        ("ops.__compatible_ops__['x'] = False", "__compatible_ops__"),
    ],
)
def test_a_private_name_of_another_package_is_found(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "engine.py").write_text(text + "\n")
    assert ("learner/engine.py", name) in found_in(tmp_path)


def test_names_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    text = """
from __future__ import annotations
class Own:
    _shared: int = 0
    def __init__(self):
        self._value, _ = 1, 2
    def _step(self):
        return self._value + Own._shared + _helper(self) + len(self.__class__.__name__)
def _helper(own):
    return own._step() + getattr(own, "_value")
"""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "own.py").write_text(text)
    assert found_in(tmp_path) == set()
