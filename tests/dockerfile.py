"""deploy/Dockerfile as data: its stages and instructions, and what a build of it would be sent."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.whole_runs import REPOSITORY

DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"
BIN = Path(sys.executable).parent
SEARCHED = {"PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"}


@dataclass(frozen=True, slots=True)
class Instruction:
    """Example: Instruction(keyword="COPY", flags={"from": "builder"}, text="/opt/venv /opt/venv")"""

    keyword: str
    flags: dict[str, str]
    text: str

    @property
    def copied(self) -> tuple[list[str], str]:
        """Of a COPY: its sources and its destination."""
        *sources, destination = self.text.split()
        return sources, destination


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def of(self, keyword: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.keyword == keyword]


def parse(text: str) -> dict[str, Stage]:
    """Stages by name, in order. ValueError for an instruction before the first stage and for a stage without a name."""
    stages: dict[str, Stage] = {}
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for logical in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, _, rest = logical.partition(" ")
        flags = {}
        while flag := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        if keyword == "FROM":
            named = re.fullmatch(r"(\S+) AS (\S+)", rest)
            if not named:
                raise ValueError(f"a stage without a name: {logical}")
            stages[named[2]] = Stage(name=named[2], base=named[1])
        elif not stages:
            raise ValueError(f"before the first stage: {logical}")
        else:
            stages[list(stages)[-1]].instructions.append(Instruction(keyword, flags, rest))
    return stages


STAGES = parse(DOCKERFILE.read_text())


def line_of(name: str) -> list[Stage]:
    """A stage and what it is made from, outermost first."""
    found = []
    while name in STAGES:
        found.append(STAGES[name])
        name = STAGES[name].base
    return found[::-1]


def environment(name: str) -> dict[str, str]:
    """What ENV leaves in a stage; values are as written, so that PATH still names $PATH."""
    pairs = (
        pair.partition("=")
        for stage in line_of(name)
        for instruction in stage.of("ENV")
        for pair in shlex.split(instruction.text)
    )
    return {key: value for key, _, value in pairs}


def commands(instruction: Instruction) -> list[list[str]]:
    """The words of each command of a RUN line, quotes resolved."""
    words = shlex.shlex(instruction.text, posix=True, punctuation_chars="&|;<>")
    words.whitespace_split = True
    return [list(group) for last, group in itertools.groupby(words, lambda word: word == "&&") if not last]


def uv_commands() -> list[list[str]]:
    lines = [line for stage in STAGES.values() for line in stage.of("RUN")]
    return [command for line in lines for command in commands(line) if command[0] == "uv"]


def run_line(name: str, having: str, **replaced: str) -> str:
    """The one RUN line of a stage that has a text, as it would be run, with every old=new of ``replaced`` applied."""
    (found,) = [instruction.text for instruction in STAGES[name].of("RUN") if having in instruction.text]
    for old, new in replaced.items():
        assert old in found
        found = found.replace(old, new)
    return found


def bash(script: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env=os.environ | SEARCHED | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", text))


def line_with(text: str, path: str) -> str:
    (found,) = [line for line in re.sub(r"\\\n", "", (REPOSITORY / path).read_text()).splitlines() if text in line]
    return found


def patterns(name: str) -> list[str]:
    return [line for line in (REPOSITORY / name).read_text().splitlines() if line and not line.startswith("#")]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path, or a folder above it, out of the build context."""
    expressions = []
    for pattern in patterns(".dockerignore"):
        assert not pattern.startswith("!"), "exceptions are not read here"
        parts = re.split(r"(\*\*/|\*|\?)", pattern.rstrip("/"))
        wild = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
        expressions.append("".join(wild.get(part, re.escape(part)) for part in parts))
    return re.fullmatch(f"(?:{'|'.join(expressions)})(?:/.*)?", path) is not None


def context() -> Iterator[Path]:
    """Every file that the build would be sent, relative to the project."""
    for folder, folders, files in os.walk(REPOSITORY):
        here = Path(folder).relative_to(REPOSITORY)
        folders[:] = [name for name in folders if not ignored(str(here / name))]
        yield from (here / name for name in files if not ignored(str(here / name)))


def from_context(*names: str) -> list[Instruction]:
    stages = [STAGES[name] for name in names] if names else list(STAGES.values())
    return [copy for stage in stages for copy in stage.of("COPY") if "from" not in copy.flags]


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=SEARCHED["PATH"])
    assert program, "hadolint is one of the dev requirements: make setup"
    return subprocess.run([program, "--no-color", "-"], input=text, capture_output=True, text=True, timeout=60)
