"""One cell of a comparison: one training run of one method under one seed, in a folder of its own, and what it came to.

The results file holds all of them; every table and figure of a comparison is made from it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learner.methods import METHODS, Merger, Method
from orchestrator.bench.summary import summarize_side
from orchestrator.errors import BadInput, RunFailed
from orchestrator.files import last_lines, locked, read_lines, replace_text
from orchestrator.recipes import load_recipe
from orchestrator.run.rundir import RunDir
from rewards.pareto import igd_plus, nondominated
from rewards.section import Section

if TYPE_CHECKING:
    from orchestrator.config import Recipe

RESULTS = "results.json"
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
            raise RunFailed(
                f"{cell.name}: ended with exit code {code}, see {log_path}: {last_lines(log_path, 1)[0]:.500}"
            )

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


class CellResult(Section):
    """One finished run."""

    method: str
    seed: int
    knob: str
    """The last part of the method's `tuned_by` ..."""
    value: float
    """... and what it stood at."""
    prompts: int
    """Prompts sampled; the same for every method."""
    generated_tokens: int
    learner_tokens: int
    labels: int = 0
    """Comparisons that annotators made."""
    seconds: float
    """Wall time of the training part, without the evaluations within it."""
    evaluations: list[dict[str, Any]] = Field(min_length=1)
    """As in summary.json (`before`, ..., `after`), with `generated_tokens` so far, and `covariance`."""

    @property
    def after(self) -> dict[str, Any]:
        return self.evaluations[-1]


class Sweep(Section):
    """One setting of the first method at several values, the rest at what was chosen for that method."""

    key: str
    """Example: method.beta_w"""
    values: tuple[float, ...]
    methods: tuple[str, ...]
    """The name under which each value's cells stand; the plain method where the value is the recipe's own."""


class Results(Section):
    """results.json."""

    recipe: str
    objectives: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    tune_seed: int | None = None
    tuning: tuple[CellResult, ...] = ()
    """Runs of the tuning seed, from which each method's value was chosen; in no other table."""
    sweep: Sweep | None = None
    cells: list[CellResult]
    """Of every method, and of the sweep, under every seed."""

    def of(self, method: str) -> list[CellResult]:
        """The method's cells in the order of the seeds; also of a variant that only the sweep has."""
        by_seed = {cell.seed: cell for cell in self.cells if cell.method == method}
        return [by_seed[seed] for seed in self.seeds]


def gather(work: Work, cell: Cell) -> CellResult:
    """Read a finished cell's run directory."""
    path = work.run_path(cell)
    metrics = list(read_lines(path / "metrics.jsonl"))
    run = json.loads((path / "run.json").read_text(encoding="utf-8"))
    records = read_lines(path / "evaluations.jsonl")
    # Merges are evaluated outside the steps of their parts.
    within = [] if issubclass(method_of(cell.method), Merger) else records[:-1]
    evaluations = []
    for record in records:
        tokens = sum(step["generated_tokens"] for step in metrics if step["step"] < record["step"])
        evaluations.append(summarize_side(record) | {"covariance": record["covariance"], "generated_tokens": tokens})
    return CellResult(
        method=cell.method,
        seed=cell.seed,
        knob=cell.knob,
        value=cell.value,
        prompts=sum(step["prompts"] for step in metrics),
        generated_tokens=sum(step["generated_tokens"] for step in metrics),
        learner_tokens=sum(step["learner_tokens"] for step in metrics),
        labels=sum(step.get("labels", 0) for step in metrics),
        seconds=float(run["training"]["seconds"]) - sum(record["seconds"] for record in within),
        evaluations=evaluations,
    )


def add_igd_plus(results: Results) -> None:
    """IGD+ of each cell's last points to the nondominated union of the compared methods under its seed.

    Seeds have starting policies, and so normalisers, of their own; their points share no scale.
    """
    for seed in results.seeds:
        of_seed = [cell for cell in results.cells if cell.seed == seed]
        compared = [cell.after["points"] for cell in of_seed if cell.method in results.methods]
        union = np.concatenate([np.array(points, dtype=float) for points in compared])
        front = union[nondominated(union)]
        for cell in of_seed:
            cell.after["igd_plus"] = igd_plus(cell.after["points"], front)


def write_results(path: Path, results: Results) -> None:
    replace_text(path, results.model_dump_json(indent=1) + "\n")


def best_value(tuning: Iterable[CellResult], method: str) -> float:
    """The value with the highest `tuning_score` after training; the first of equal ones."""
    return max((cell for cell in tuning if cell.method == method), key=tuning_score).value


def tuning_score(cell: CellResult) -> float:
    """MIP after training by the audit judge, or by the reward models where there is none.

    The policy is trained on the reward models, so their MIP alone would choose whatever exploits them most.
    """
    return float((cell.after.get("audit") or cell.after)["mip"])
