"""Any runs on the same objectives side by side: what they reached, on one scale, as a table and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.bench.summary import NOT_SHOWN, summarize_side
from orchestrator.bench.tables import Table, as_markdown
from orchestrator.errors import BadInput
from orchestrator.files import Record, as_text, read_lines
from rewards.metrics import EVALUATION_METRICS, describe, evaluation_figures
from rewards.pareto import hypervolume, mean_inner_product, steering_gap

FIGURE = "overlay.png"
TABLE = "overlay.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlaid:
    """One run. Example: Overlaid(name="miniature-1", evaluation={...})"""

    name: str
    evaluation: Record
    """The last one, in the scale of the first run."""


def overlay(runs: Sequence[Path], output: Path | None, *, say: Callable[[str], None] = print) -> Path:
    """Write the figure and the table, tell the table; returns the folder.

    Args:
        output: None: `comparisons/` of the working directory, under the runs' names.

    Raises:
        BadInput: fewer than two runs, one without an evaluation, or of other objectives or vectors than the first.
    """
    from orchestrator.bench.figures.overlay import plot_overlay

    compared = read_runs(runs)
    folder = output or Path("comparisons") / "-".join(each.name for each in compared)
    folder.mkdir(parents=True, exist_ok=True)
    plot_overlay(folder / FIGURE, [each.name for each in compared], [each.evaluation for each in compared])
    table = figures_table(compared)
    (folder / TABLE).write_text(as_markdown(table, aligned=True) + "\n", encoding="utf-8")
    say(as_text(table))
    say(f"overlay  {folder / FIGURE}")
    return folder


def read_runs(runs: Sequence[Path]) -> list[Overlaid]:
    """In one scale: that of the first run's normaliser. Raises BadInput as `overlay` does."""
    if len(runs) < 2:
        raise BadInput(f"compare: needs two runs or more, got {len(runs)}")
    names = _names(runs)
    evaluations = []
    for run in runs:
        lines = read_lines(run / "evaluations.jsonl")
        if not lines:
            raise BadInput(f"{run}: holds no evaluation to compare")
        evaluations.append(lines[-1])
    first = evaluations[0]
    for run, evaluation in zip(runs, evaluations, strict=True):
        for key in ("objectives", "preferences"):
            if evaluation[key] != first[key]:
                raise BadInput(
                    f"{run}: {key} must be those of {runs[0]}, {first[key]!r:.80}, got {evaluation[key]!r:.80}"
                )
    return [
        Overlaid(
            name=name,
            evaluation=in_scale(evaluation, first["normalizer"], first["reference_point"]),
        )
        for name, evaluation in zip(names, evaluations, strict=True)
    ]


def in_scale(evaluation: Record, normalizer: Mapping[str, Any], reference_point: Sequence[float]) -> Record:
    """The evaluation as another normaliser would have it: its points, and the figures that are made of them.

    Covariances and clouds stay, which nothing here draws. A figure of the audit judge is left out where that judge's
    scale is another's, and so are the intervals.
    """
    own = evaluation["normalizer"]
    if (own["mean"], own["std"]) == (normalizer["mean"], normalizer["std"]):
        return evaluation
    ratio_K = np.array(own["std"]) / np.array(normalizer["std"])
    shift_K = (np.array(own["mean"]) - np.array(normalizer["mean"])) / np.array(normalizer["std"])
    points_NK = np.array(evaluation["points"]) * ratio_K + shift_K
    preferences_NK = np.array(evaluation["preferences"])
    return {
        **evaluation,
        "points": points_NK.tolist(),
        "mip": mean_inner_product(preferences_NK, points_NK),
        "hypervolume": hypervolume(points_NK, reference_point),
        "steering_gap": steering_gap(preferences_NK, points_NK),
        "crd": evaluation["crd"] * float(np.prod(ratio_K**2)),
        "reference_point": list(reference_point),
        "normalizer": dict(normalizer),
        "prompt_intervals": None,
        "audit": None,
        "attainable": None,
    }


def figures_table(compared: Sequence[Overlaid]) -> Table:
    """A heading row, then a figure and its value for each run; of two runs, what the second has more as well."""
    sides = [evaluation_figures(summarize_side(each.evaluation), each.evaluation["objectives"]) for each in compared]
    two = len(compared) == 2
    table = [["metric", *(each.name for each in compared), *(["change"] if two else [])]]
    for key in dict.fromkeys(key for side in sides for key in side):
        metric = describe(key, table=EVALUATION_METRICS)
        if key.removeprefix("audit/").partition("/")[0] in NOT_SHOWN:
            continue
        values = [side.get(key) for side in sides]
        change = [metric.change(values[0], values[1])] if two else []
        table.append([metric.name, *map(metric.show, values), *change])
    return table


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' own names, or with those around them where these are the same."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part for part in each[-depth:] if part != "/") for each in parts]
        if len(set(names)) == len(names):
            return names
    raise BadInput(f"compare: needs different runs, got {', '.join(map(str, runs))}")
