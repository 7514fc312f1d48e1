"""What finished cells came to: one results file, from which every table and figure of a comparison is made."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from learner.methods import Merger
from orchestrator.bench.cells import Cell, Work, method_of
from orchestrator.bench.summary import summarize_side
from orchestrator.files import read_lines, replace_text
from rewards.config import Section
from rewards.pareto import igd_plus, nondominated

RESULTS = "results.json"


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
