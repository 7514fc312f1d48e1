"""Who may import whom, what files may be called, what the light ones may import, and the loads that no room makes.

All of it is read from the syntax trees; nothing is imported.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS: dict[str, frozenset[str]] = {  # room -> other rooms it may import
    "orchestrator": frozenset({"actors", "learner", "rewards"}),
    "actors": frozenset({"rewards"}),
    "learner": frozenset({"rewards"}),
    "rewards": frozenset(),
}
SHARED = frozenset({("learner", "actors.processes"), ("learner", "actors.tensors")})
"""(room, file of another room) that may be imported against the arrows, by this name alone. What needs Ray, or
torch as a file loads, and is the same in both stands there; what needs neither, in `rewards`."""
ORCHESTRATOR = (
    *("cli", "notebook", "bench", "run", "tasks", "plan", "inputs", "cluster", "estimate"),
    *("recipes", "trees", "config", "sections", "cards", "data", "rows", "pace", "console", "progress", "files"),
    *("options", "packages", "errors"),
)
"""Folders and files of `orchestrator`, the top one first: each may import itself and what stands after it."""
MOST_OF_A_NAME = 2
"""Files of one name; `actors/weights.py` and `learner/weights.py` are two ends of one thing."""
NOT_ROOMS = frozenset({"deploy", "tests"})
HEAVY = frozenset({"deepspeed", "ray", "torch", "transformers", "vllm"})
# importable in well under a second
LIGHT_FILES = frozenset(
    f"{name}.py"
    for name in (
        *("cli", "config", "section", "sections", "judge_sections"),
        *("metrics", "preferences", "simplex", "recipes", "types"),
    )
)
SEAMS = (
    *(f"orchestrator/run/{name}.py" for name in ("loop", "stages", "wiring", "batching", "sampling", "in_flight")),
    *(f"orchestrator/{name}.py" for name in ("run/train", "run/soups", "cluster/crew", "cluster/judging")),
    *(f"learner/{name}.py" for name in ("examples", "sequences", "types", "group", "methods/method")),
    "actors/types.py",
)
"""Where stages, crew and rooms meet: everything that passes there has a type."""
UNPICKLERS = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "joblib", "ray.cloudpickle"})


def sources(root: Path) -> list[Path]:
    return sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))


def imported_modules(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import below `node`, inside functions too, and of `import_module("it")`."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield child.lineno, child.module
        elif isinstance(child, ast.Call) and dotted(child.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield from ((child.lineno, text(arg)) for arg in child.args[:1] if text(arg))


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """As `imported_modules`, and every name that is imported out of one, which may be a module itself."""
    yield from imported_modules(tree)
    for child in ast.walk(tree):
        if isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield from ((child.lineno, f"{child.module}.{alias.name}") for alias in child.names)


def imported_at_load(statements: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """As `imported_modules`, of what runs when a module is loaded: no function bodies, no TYPE_CHECKING blocks."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from imported_modules(statement)
        elif isinstance(statement, ast.If) and dotted(statement.test).endswith("TYPE_CHECKING"):
            yield from imported_at_load(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody"):
                yield from imported_at_load(getattr(statement, block, []))
            for handler in getattr(statement, "handlers", []):
                yield from imported_at_load(handler.body)


def text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of names, else what is left of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def arrow_violations(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        room = path.relative_to(root).parts[0]
        forbidden = (ROOMS.keys() | NOT_ROOMS) - ROOMS[room] - {room}
        if room == "rewards":
            forbidden = forbidden | {"ray"}
        for line, module in imported_modules(ast.parse(path.read_text())):
            if module.partition(".")[0] in forbidden and (room, module) not in SHARED:
                found.append(f"{path.relative_to(root)}:{line}: {room} imports {module}")
    return found


def shared_violations(root: Path) -> list[str]:
    """Imports of a shared file that would take more of its room along than records and settings."""
    found = []
    for _, shared in sorted(SHARED):
        path = root.joinpath(*shared.split(".")).with_suffix(".py")
        room = shared.partition(".")[0]
        for line, module in imported_modules(ast.parse(path.read_text())):
            if module.partition(".")[0] == room and f"{module.rpartition('.')[2]}.py" not in LIGHT_FILES:
                found.append(f"{path.relative_to(root)}:{line}: a shared file imports {module}")
    return found


def floor_violations(root: Path) -> list[str]:
    """Imports inside `orchestrator` that go up."""
    found = []
    for path in sorted((root / "orchestrator").rglob("*.py")):
        own = path.relative_to(root / "orchestrator").parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        below = ORCHESTRATOR[ORCHESTRATOR.index(own) :]
        for line, module in imported_modules(ast.parse(path.read_text())):
            room, _, inner = module.partition(".")
            if room == "orchestrator" and inner.partition(".")[0] not in below:
                found.append(f"{path.relative_to(root)}:{line}: {own} imports {module}")
    return found


def circles(root: Path) -> list[str]:
    """Files that import each other over any number of steps, imports inside functions and TYPE_CHECKING included."""
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in sources(root)}
    known = set(names.values())
    imports = {
        name: {module for _, module in imported_names(ast.parse(path.read_text())) if module in known} - {name}
        for path, name in names.items()
    }
    reached = {name: set(modules) for name, modules in imports.items()}
    for middle in known:
        for name in known:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return sorted(name for name in known if name in reached[name])


def ambiguous_names(root: Path) -> list[str]:
    """File names that mean three things or more. `config.py` is in each room that room's part of the recipe."""
    places: dict[str, list[str]] = {}
    for path in sources(root):
        if path.name not in ("__init__.py", "config.py"):
            places.setdefault(path.name, []).append(str(path.relative_to(root)))
    return [f"{name}: {', '.join(found)}" for name, found in sorted(places.items()) if len(found) > MOST_OF_A_NAME]


def heavy_violations(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: {module} at module level"
        for path in sources(root)
        if path.name in LIGHT_FILES
        for line, module in imported_at_load(ast.parse(path.read_text()).body)
        if module.partition(".")[0] in HEAVY
    ]


def unsafe_call(call: ast.Call) -> str | None:
    """The rule that a call breaks: code from a hub, or bytes that run code when they are loaded."""
    keywords = {keyword.arg: getattr(keyword.value, "value", keyword.value) for keyword in call.keywords}
    owner, _, name = dotted(call.func).rpartition(".")
    if keywords.get("trust_remote_code", False) is not False:
        return "trust_remote_code"
    if keywords.get("allow_pickle", False) is not False:
        return "allow_pickle"
    if owner in UNPICKLERS and name in ("load", "loads", "Unpickler"):
        return f"{owner}.{name}"
    if owner == "torch" and name == "load" and keywords.get("weights_only") is not True:
        return "torch.load without weights_only=True"
    if owner == "yaml" and name in ("load", "load_all", "unsafe_load", "full_load"):
        return f"yaml.{name}, which is not safe_load"
    return None


LOADER = "rewards/pretrained.py"
"""The one file that loads tokenizers, configurations and models; a generation configuration is plain numbers."""


def unsafe_violations(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        place = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (rule := unsafe_call(node)):
                found.append(f"{place}:{node.lineno}: {rule}")
            elif isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and place.as_posix() != LOADER:
                if dotted(node.value) != "GenerationConfig":
                    found.append(f"{place}:{node.lineno}: from_pretrained, which is for {LOADER} alone")
            elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
                found.append(f"{place}:{node.lineno}: names out of {node.module}")
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if (
                        getattr(key, "value", None) == "trust_remote_code"
                        and getattr(value, "value", value) is not False
                    ):
                        found.append(f"{place}:{node.lineno}: trust_remote_code")
    return found


def test_every_room_is_there_to_be_checked() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources(ROOT)} == set(ROOMS)


def test_rooms_import_only_along_the_arrows() -> None:
    assert arrow_violations(ROOT) == []


def test_what_a_room_shares_against_the_arrows_takes_nothing_heavy_along() -> None:
    assert shared_violations(ROOT) == []


def test_inside_the_orchestrator_imports_go_down() -> None:
    assert floor_violations(ROOT) == []


def test_no_files_import_each_other() -> None:
    assert circles(ROOT) == []


def test_no_file_name_means_three_things() -> None:
    assert ambiguous_names(ROOT) == []


@pytest.mark.parametrize("seam", SEAMS)
def test_what_passes_between_stages_has_a_type(seam: str) -> None:
    tree = ast.parse((ROOT / seam).read_text())
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any"] == []


def test_the_light_files_import_nothing_heavy_when_they_are_loaded() -> None:
    assert heavy_violations(ROOT) == []


def test_no_room_runs_code_out_of_a_model_or_a_pickle() -> None:
    assert unsafe_violations(ROOT) == []


def write_room(root: Path, place: str, text: str) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_an_import_that_goes_up_and_a_circle_are_found(tmp_path: Path) -> None:
    write_room(tmp_path, "orchestrator/cluster/fleet.py", "from orchestrator.run import loop\n")
    write_room(tmp_path, "orchestrator/run/loop.py", "def f():\n    from orchestrator.cluster.fleet import Fleet\n")
    assert floor_violations(tmp_path) == ["orchestrator/cluster/fleet.py:1: cluster imports orchestrator.run"]
    assert circles(tmp_path) == ["orchestrator.cluster.fleet", "orchestrator.run.loop"]


def test_a_file_name_that_means_three_things_is_found(tmp_path: Path) -> None:
    for folder in ("actors", "learner", "orchestrator/tasks"):
        write_room(tmp_path, f"{folder}/policy.py", "")
        write_room(tmp_path, f"{folder}/config.py", "")
    assert ambiguous_names(tmp_path) == ["policy.py: actors/policy.py, learner/policy.py, orchestrator/tasks/policy.py"]


@pytest.mark.parametrize(
    ("place", "text", "found"),
    [
        ("actors/rollout.py", "import learner.types\n", "actors/rollout.py:1: actors imports learner.types"),
        (
            "learner/worker.py",
            "def push():\n    from actors import rollout\n",
            "learner/worker.py:2: learner imports actors",
        ),
        ("learner/ranks.py", "from actors import processes\n", "learner/ranks.py:1: learner imports actors"),
        ("actors/processes.py", "import learner.types\n", "actors/processes.py:1: actors imports learner.types"),
        ("rewards/deep/scorers.py", "from orchestrator.config import Recipe\n", "rewards imports orchestrator.config"),
        ("rewards/scorers.py", "async def f():\n    import ray\n", "rewards imports ray"),
        ("orchestrator/run/loop.py", "import tests.fakes\n", "orchestrator imports tests.fakes"),
        (
            "actors/late.py",
            "import importlib\nm = importlib.import_module('learner.losses')\n",
            "actors imports learner.losses",
        ),
        (
            "learner/typed.py",
            "if TYPE_CHECKING:\n    from orchestrator.run.loop import run\n",
            "learner imports orchestrator.run.loop",
        ),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path: Path, place: str, text: str, found: str) -> None:
    write_room(tmp_path, place, text)
    (violation,) = arrow_violations(tmp_path)
    assert found in violation


def test_imports_along_the_arrows_and_within_a_room_pass(tmp_path: Path) -> None:
    write_room(
        tmp_path,
        "orchestrator/run/loop.py",
        "import actors.types, learner.types, rewards.pareto\nfrom orchestrator import data\n",
    )
    write_room(
        tmp_path, "actors/reward.py", "from rewards.scorers import build_scorer\nfrom . import types\nimport ray\n"
    )
    write_room(tmp_path, "learner/ranks.py", "from actors.processes import deaths\n")
    assert arrow_violations(tmp_path) == []


def test_a_shared_file_that_imports_an_engine_is_found(tmp_path: Path) -> None:
    write_room(tmp_path, "actors/tensors.py", "import torch\n")
    write_room(tmp_path, "actors/processes.py", "import actors.types\ndef f():\n    from actors.engine import load\n")
    assert shared_violations(tmp_path) == ["actors/processes.py:3: a shared file imports actors.engine"]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\n",
        "from transformers import AutoTokenizer\n",
        "try:\n    import vllm\nexcept ImportError:\n    vllm = None\n",
        "try:\n    import json\nexcept ImportError:\n    import ray\n",
        "class Config:\n    import deepspeed.ops\n",
        "if TYPE_CHECKING:\n    import json\nelse:\n    import torch\n",
        "with open('x') as f:\n    import torch\n",
    ],
)
def test_a_heavy_import_in_a_light_file_is_found(tmp_path: Path, text: str) -> None:
    write_room(tmp_path, "learner/config.py", text)
    assert len(heavy_violations(tmp_path)) == 1


def test_heavy_imports_inside_functions_and_for_the_type_checker_pass(tmp_path: Path) -> None:
    write_room(tmp_path, "rewards/types.py", "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n")
    write_room(tmp_path, "actors/rollout.py", "import ray\n")
    assert heavy_violations(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "AutoModel.from_pretrained(path)\n",
        "load = AutoTokenizer.from_pretrained\n",
        "load_model(path, trust_remote_code=True)\n",
        "load_model(path, trust_remote_code=config.trust)\n",
        "options = {'trust_remote_code': True}\n",
        "import pickle\npickle.load(file)\n",
        "from pickle import loads\n",
        "torch.load(path)\n",
        "torch.load(path, weights_only=False)\n",
        "numpy.load(path, allow_pickle=True)\n",
        "yaml.load(text, Loader=yaml.Loader)\n",
    ],
)
def test_an_unsafe_load_is_found(tmp_path: Path, text: str) -> None:
    write_room(tmp_path, "learner/engine.py", text)
    assert len(unsafe_violations(tmp_path)) == 1


def test_safe_loads_pass(tmp_path: Path) -> None:
    text = "torch.load(path, weights_only=True)\nyaml.safe_load(text)\njson.load(file)\nf(trust_remote_code=False)\n"
    write_room(tmp_path, "learner/engine.py", text)
    assert unsafe_violations(tmp_path) == []
