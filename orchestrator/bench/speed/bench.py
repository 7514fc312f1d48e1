"""`mi-epo bench`: the measurements one after the other, what they found, and the page that tells it."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.bench.speed.page import write_page
from orchestrator.bench.speed.parts import PARTS, Settings
from orchestrator.bench.turns import Part, measure, work
from orchestrator.errors import EXIT_FAILED, BadInput
from orchestrator.files import replace_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Example: Asked(folder=Path("runs/bench"))"""

    folder: Path
    """outcomes, log of every part, models"""
    parts: tuple[str, ...] | None = None
    """None: all."""
    part: str | None = None
    """The one that this process does."""
    output: Path | None = None
    """Markdown."""
    quick: bool = False
    trl: Path | None = None


def bench(asked: Asked, *, say: Callable[[str], None] = print) -> int:
    """Measure, and write FOLDER/bench.json and the page; returns the exit code.

    Raises:
        BadInput: no such part; a folder without TRL.
    """
    known = {part.name: part for part in PARTS}
    settings = Settings(quick=asked.quick, trl=asked.trl)
    if asked.part is not None:
        return work(known[asked.part], asked.folder, settings)
    names = asked.parts or tuple(part.name for part in PARTS if not (asked.quick and part.rehearsed_by))
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--parts: must be of {', '.join(known)}, got {unknown[0]!r}")
    if asked.trl is not None and not (asked.trl / "trl" / "__init__.py").is_file():
        raise BadInput(f"--trl: must be a folder that TRL was installed into (no trl in it), got {str(asked.trl)!r}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    before = [each for each in _outcomes(asked.folder) if each["part"] not in names]
    measured = measure(
        [known[name] for name in names],
        asked.folder,
        lambda part: _command(part, asked),
        called="bench",
        total_s=None,
        before=before,
    )
    order = list(known)
    outcomes = sorted([*before, *measured], key=lambda each: order.index(each["part"]))
    if asked.output is not None:
        replace_text(asked.output, write_page(outcomes))
        say(str(asked.output))
    return 0 if all(each["ok"] for each in measured) else EXIT_FAILED


def _command(part: Part[Settings], asked: Asked) -> list[str]:
    command = [sys.executable, "-m", "orchestrator", "bench", "--folder", str(asked.folder), "--part", part.name]
    command += ["--quick"] if asked.quick else []
    return command + ([] if asked.trl is None else ["--trl", str(asked.trl)])


def _outcomes(folder: Path) -> list[dict[str, Any]]:
    """Of the last call in this folder."""
    file = folder / "bench.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
