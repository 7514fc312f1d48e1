"""Measurements in turn, each a process of its own with a deadline: what crashes or hangs does not reach the next."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from orchestrator.files import as_text, finite, last_lines, replace_text
from rewards.environment import one_line

LEAST_S = 20.0
"""With less time left a part is not begun."""
PATIENCE = 5.0
"""Times its limit that a part has where nothing limits all of them: a deadline is only for what hangs then."""
END_S = 20.0
"""From the request to stop to the kill; a training run saves and ends its actors in between."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[S]):
    """What is measured, what must hold of it, how long it may take. S: what all parts of a measurement are told.

    Example: Part(name="machine", limit_s=60, work=machine)
    """

    name: str
    limit_s: float
    work: Callable[[Path, S], dict[str, Any]]
    """Given the folder of all parts; returns figures, and raises what must hold and does not."""
    rehearsed_by: str | None = None
    """The part that is the same in a rehearsal, where only that one runs."""


def measure(
    parts: Sequence[Part[S]],
    folder: Path,
    command_of: Callable[[Part[S]], list[str]],
    *,
    called: str,
    total_s: float | None,
    before: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """All parts, each told as it ends, and their outcomes, which FOLDER/<called>.json and .md hold after every one.

    Args:
        command_of: starts a part's work; it leaves FOLDER/<part>.json.
        total_s: for all together; None: each has several times its own limit.
        before: outcomes of other parts, which the files hold too.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no part outlives this
    started, outcomes = time.monotonic(), []
    for part in parts:
        left = PATIENCE * part.limit_s if total_s is None else total_s - (time.monotonic() - started)
        limit_s = left if total_s is None else min(part.limit_s, left)
        if total_s is not None and left < min(LEAST_S, part.limit_s):
            outcome: dict[str, Any] = {
                "part": part.name,
                "ok": False,
                "seconds": 0.0,
                "error": "not begun: no time left",
            }
        else:
            print(f"{part.name} (at most {limit_s:.0f} s) ...", flush=True)
            outcome = _in_a_process(part, folder, command_of(part), limit_s)
        outcomes.append(outcome)
        replace_text(folder / f"{called}.json", json.dumps(finite([*before, *outcomes]), indent=1) + "\n")
        replace_text(folder / f"{called}.md", table([*before, *outcomes]))
        print(f"  {'ok' if outcome['ok'] else outcome['error']} ({outcome['seconds']:.0f} s)", flush=True)
    print("\n" + table(outcomes))
    return outcomes


def table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """One line a part, then one a figure."""
    rows = [("part", "outcome", "seconds")]
    rows += [(each["part"], "ok" if each["ok"] else each["error"], f"{each['seconds']:.0f}") for each in outcomes]
    figures = [("part", "figure", "value")]
    figures += [
        (each["part"], name, f"{value:.4g}" if isinstance(value, float) else str(value))
        for each in outcomes
        for name, value in each.get("figures", {}).items()
        if not isinstance(value, Mapping)
    ]
    return f"{as_text(rows)}\n\n{as_text(figures)}\n"


def _in_a_process(part: Part[S], folder: Path, command: list[str], limit_s: float) -> dict[str, Any]:
    """A part that crashes, hangs or leaves processes behind does not reach the next."""
    result, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        family: set[psutil.Process] = set()
        try:
            while process.poll() is None and time.monotonic() - started < limit_s:
                with contextlib.suppress(psutil.NoSuchProcess):
                    family |= set(process.children(recursive=True))
                time.sleep(0.2)
            late = process.poll() is None
        finally:  # also where this process is asked to end
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= set(process.children(recursive=True))
            _end({process, *family})
    outcome: dict[str, Any] = {"part": part.name, "ok": False, "seconds": time.monotonic() - started}
    if late:
        return outcome | {"error": f"not done within {limit_s:.0f} s"}
    if not result.is_file():
        return outcome | {"error": f"ended with {process.returncode}: {last_lines(log, 1)[0]}"}
    return outcome | json.loads(result.read_text(encoding="utf-8"))


def _end(family: set[psutil.Process]) -> None:
    """Ask all that is left of a part to end, children too, and kill what does not."""
    alive = [process for process in family if process.is_running()]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=END_S)


def work(part: Part[S], folder: Path, settings: S) -> int:
    """Does a part in this process and writes FOLDER/<part>.json."""
    try:
        outcome: dict[str, Any] = {"ok": True, "figures": part.work(folder, settings)}
    except Exception as error:  # whatever it is, it is this part's outcome
        import traceback

        traceback.print_exc()
        outcome = {"ok": False, "error": f"{type(error).__name__}: {one_line(error)}"}
    replace_text(folder / f"{part.name}.json", json.dumps(finite(outcome)) + "\n")
    return 0 if outcome["ok"] else 1
