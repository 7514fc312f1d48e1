"""One cell of a comparison: one training run of one method under one seed, in a folder of its own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from learner.methods import METHODS, Method
from orchestrator.errors import BadInput, RunFailed
from orchestrator.files import locked
from orchestrator.recipes import load_recipe
from orchestrator.run.rundir import RunDir

if TYPE_CHECKING:
    from orchestrator.config import Recipe

STOP_TIMEOUT_S = 180.0
"""How long a stopped run may take to save its checkpoint and leave."""
ORPHAN_TIMEOUT_S = 3600.0
"""Longest wait for a run that an earlier, killed comparison left behind."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """Example: Cell(method="mi-epo@method.beta_w=0.03", seed=0, value=0.3)"""

    method: str
    """A method of `learner.methods`, or a variant of one: METHOD@section.key=value, again with @ for more keys."""
    seed: int
    value: float
    """Of the setting `key`."""
    part: Literal["cells", "tuning", "sweep"] = "cells"
    """What it is run for, and its folder; only `cells` are evaluated on the way as well."""

    @property
    def key(self) -> str:
        """The method's `tuned_by`, a key of the recipe."""
        return method_of(self.method).tuned_by

    @property
    def knob(self) -> str:
        """Its last part, for tables and folders."""
        return self.key.rpartition(".")[2]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.knob}{self.value:g}-seed{self.seed}"

    def overrides(self) -> list[str]:
        name, *changes = self.method.split("@")
        curve = [] if self.part == "cells" else ["evaluate.every=0"]
        return [f"method={name}", f"seed={self.seed}", f"{self.key}={self.value}", *changes, *curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every cell shares: the recipe file, the comparison's own overrides, and where the cells lie."""

    recipe_path: str
    overrides: tuple[str, ...]
    folder: Path

    def recipe(self, cell: Cell) -> "Recipe":
        return load_recipe(self.recipe_path, [*self.overrides, *cell.overrides()])

    def run_path(self, cell: Cell) -> Path:
        return self.folder / cell.part / cell.name


def is_finished(work: Work, cell: Cell) -> bool:
    """Whether the cell's run is complete.

    Raises:
        BadInput: it was begun with another recipe.
    """
    run_dir = RunDir(work.run_path(cell))
    if run_dir.holds_run and not run_dir.recipe().same_work(work.recipe(cell)):
        raise BadInput(f"{run_dir.path}: was run with another recipe; choose another --output, or move it away")
    return run_dir.status == "finished"


class CellRunner:
    """Runs cells as processes of their own, so that one that fails or is killed harms no other; thread-safe."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __call__(self, cell: Cell) -> bool:
        """Train the cell, from its last checkpoint when it was begun before; whether it finished (False: stopped).

        A run that outlived its killed comparison is waited for, and kept when it finishes.

        Raises:
            RunFailed: the run ended with an error; the message ends with its last line.
            BadInput: another process has been at this run for `ORPHAN_TIMEOUT_S`.
        """
        path = self.work.run_path(cell)
        late = f"{path}: another process has been running it for {ORPHAN_TIMEOUT_S:g} s; stop it first"
        with locked(path.with_name(f".{path.name}.lock"), timeout_s=ORPHAN_TIMEOUT_S, late=late) as lock:
            if not is_finished(self.work, cell):
                self._train(cell, path, lock.fileno())
            return is_finished(self.work, cell)

    def _train(self, cell: Cell, path: Path, lock: int) -> None:
        log_path = path.with_name(path.name + ".log")
        command = [sys.executable, "-m", "orchestrator", "train", self.work.recipe_path, *self.work.overrides]
        with log_path.open("ab") as log, self._lock:
            if self._stopped:
                return
            process = subprocess.Popen(
                [*command, *cell.overrides(), "--run-dir", str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # A group of its own: Ctrl-C reaches it once, through `stop`.
                start_new_session=True,
                pass_fds=(lock,),  # held by the run itself, so also when this process is killed
                env={**os.environ, "PYTHONPATH": _python_path()},
            )
            self._processes.add(process)
        code = process.wait()  # ends by itself: every wait inside a run has a deadline
        with self._lock:
            self._processes.discard(process)
        if code and not self._stopped:
            raise RunFailed(f"{cell.name}: ended with exit code {code}, see {log_path}: {_last_line(log_path)}")

    def stop(self) -> None:
        """Ask running cells to stop, then end what does not."""
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def method_of(variant: str) -> type[Method]:
    """`mi-epo` of `mi-epo@method.beta_w=0.03`. Raises BadInput when there is none of that name."""
    name = variant.partition("@")[0]
    if name not in METHODS:
        raise BadInput(f"--methods: must be among {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def make_cells(values: Mapping[str, float], seeds: Sequence[int]) -> list[Cell]:
    """Of {method: value of its knob}; seed by seed, so that an interrupted comparison holds whole seeds."""
    return [Cell(method=method, seed=seed, value=value) for seed in seeds for method, value in values.items()]


def _python_path() -> str:
    """The folders the packages were found in, so that `-m orchestrator` finds the same ones from anywhere."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join(dict.fromkeys([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


def _last_line(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "(no output)"
