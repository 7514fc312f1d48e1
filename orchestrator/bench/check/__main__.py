"""Runs the parts one after the other, each as a process of its own; see `deploy/gpu/check.sh`.

Exit codes: 0 every part did what it must, 1 one did not or there was no time for it, 2 bad input.
"""

import argparse
import shutil
import sys
from pathlib import Path

from orchestrator.bench.check.parts import PARTS, Settings
from orchestrator.bench.turns import measure, work

TOTAL_S = 480.0


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
    outcomes = measure(
        [known[name] for name in chosen],
        options.output,
        lambda part: [sys.executable, "-m", "orchestrator.bench.check", *sys.argv[1:], "--part", part.name],
        called="check",
        total_s=None if options.cpu else options.total,
    )
    return 0 if all(outcome["ok"] for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
