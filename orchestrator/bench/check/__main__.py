"""Runs the parts one after the other, each as a process of its own; see `deploy/gpu/check.sh`.

Exit codes: 0 every part did what it must, 1 one did not or there was no time for it, 2 bad input.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.bench.check.parts import PARTS, Part, Settings
from orchestrator.files import as_text, finite, last_lines, replace_text
from rewards.environment import one_line

TOTAL_S = 480.0
LEAST_S = 20.0
"""With less time left a part is not begun."""
PATIENCE = 5.0
"""Times its limit that a part has on CPU, where a deadline is only for what hangs."""
END_S = 20.0
"""From the request to stop to the kill; a training run saves and ends its actors in between."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/gpu/check.sh", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="rehearse on CPU with tiny models, in any time")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"), help="folder, emptied first")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M as a Hugging Face folder (default: random weights)")
    parser.add_argument("--parts", help=f"comma-separated, of {', '.join(part.name for part in PARTS)} (default: all)")
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds for all parts together")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = {part.name: part for part in PARTS}
    of_all = [part.name for part in PARTS if not (options.cpu and part.rehearsed_by)]
    chosen = options.parts.split(",") if options.parts else of_all
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--parts: must be of {', '.join(known)}, got {unknown[0]!r}")
    if options.smollm2 is not None and not (options.smollm2 / "config.json").is_file():
        parser.error(f"--smollm2: must be a Hugging Face folder (no config.json), got {str(options.smollm2)!r}")
    if options.part:
        return work(known[options.part], options.output, Settings(cpu=options.cpu, smollm2=options.smollm2))
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    return check(
        [known[name] for name in chosen],
        options.output,
        lambda part: [sys.executable, "-m", "orchestrator.bench.check", *sys.argv[1:], "--part", part.name],
        total_s=None if options.cpu else options.total,
    )


def check(
    parts: Sequence[Part], folder: Path, command_of: Callable[[Part], list[str]], *, total_s: float | None
) -> int:
    """All parts, each told as it ends; check.json and check.md are written after every one.

    Args:
        command_of: starts a part's work; it leaves FOLDER/<part>.json.
        total_s: for all together; None: each has several times its own limit.
    """
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
        replace_text(folder / "check.json", json.dumps(finite(outcomes), indent=1) + "\n")
        replace_text(folder / "check.md", table(outcomes))
        print(f"  {'ok' if outcome['ok'] else outcome['error']} ({outcome['seconds']:.0f} s)", flush=True)
    print("\n" + table(outcomes))
    return 0 if all(outcome["ok"] for outcome in outcomes) else 1


def table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """One line a part, then one a figure."""
    rows = [("part", "outcome", "seconds")]
    rows += [(each["part"], "ok" if each["ok"] else each["error"], f"{each['seconds']:.0f}") for each in outcomes]
    figures = [("part", "figure", "value")]
    figures += [
        (each["part"], name, f"{value:.4g}" if isinstance(value, float) else str(value))
        for each in outcomes
        for name, value in each.get("figures", {}).items()
    ]
    return f"{as_text(rows)}\n\n{as_text(figures)}\n"


def _in_a_process(part: Part, folder: Path, command: list[str], limit_s: float) -> dict[str, Any]:
    """A part that crashes, hangs or leaves processes behind does not reach the next."""
    result, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        family: set[psutil.Process] = set()
        while process.poll() is None and time.monotonic() - started < limit_s:
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= set(process.children(recursive=True))
            time.sleep(0.2)
        late = process.poll() is None
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


def work(part: Part, folder: Path, settings: Settings) -> int:
    """Does a part in this process and writes FOLDER/<part>.json."""
    try:
        outcome: dict[str, Any] = {"ok": True, "figures": part.work(folder, settings)}
    except Exception as error:  # whatever it is, it is this part's outcome
        import traceback

        traceback.print_exc()
        outcome = {"ok": False, "error": f"{type(error).__name__}: {one_line(error)}"}
    replace_text(folder / f"{part.name}.json", json.dumps(finite(outcome)) + "\n")
    return 0 if outcome["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
