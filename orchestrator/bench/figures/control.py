"""Control: does more weight on an objective bring more of it?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator.bench.figures.style import INK, START, STYLE, Record, judged, new_figure, objective_color, save
from rewards.metrics import EVALUATION_METRICS, describe


def plot_control(path: Path, before: Record | None, after: Record) -> None:
    """Each objective's mean reward against its own weight; the band is one standard deviation of the responses."""
    objectives = list(after["objectives"])
    columns = min(len(objectives), 3)
    rows = math.ceil(len(objectives) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(4.2 * columns + 0.4, 3.7 * rows + 0.6)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for k, axes in enumerate(grid.flat):
            if k >= len(objectives):
                axes.set_visible(False)
                continue
            if before is not None:
                _draw_control(axes, before, "reward", k, color=START, band=0.16)
            if after.get("audit"):
                _draw_control(axes, after, "audit", k, color=objective_color(k), band=0, ls=(0, (4, 2.5)), lw=1.4)
            _draw_control(axes, after, "reward", k, color=objective_color(k), band=0.16)
            axes.set_title(objectives[k])
            axes.text(0.03, 0.97, _rank_note(before, after, k), transform=axes.transAxes, va="top", fontsize=9,
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"})  # fmt: skip
            axes.set_xlabel(f"weight on {objectives[k]}")
            axes.set_xlim(-0.03, 1.03)
            axes.margins(y=0.16)
            if k % columns == 0:
                axes.set_ylabel("normalised score")
        handles = [Line2D([], [], color=INK, marker="o", ms=5, lw=2, label="trained policy" if before else "policy")]
        if after.get("audit"):
            label = "the same, scored by the audit judge"
            handles.append(Line2D([], [], color=INK, ls=(0, (4, 2.5)), lw=1.4, label=label))
        if before is not None:
            handles.append(Line2D([], [], color=START, marker="o", ms=5, lw=2, label="starting policy"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        save(figure, path)


def _draw_control(
    axes: Axes, record: Record, judge: str, k: int, *, color: str, band: float, ls: Any = "-", lw: float = 2
) -> None:
    side = judged(record, judge)
    if side is None:
        return
    weight_N = np.array(record["preferences"], dtype=float)[:, k].round(6)
    reward_N = np.array(side["points"], dtype=float)[:, k]
    levels, group_N = np.unique(weight_N, return_inverse=True)
    mean = np.array([reward_N[group_N == group].mean() for group in range(len(levels))])
    covariance = record.get("covariance")
    if band and covariance is not None:
        variance_N = np.array([np.array(matrix, dtype=float)[k][k] for matrix in covariance])
        spread = np.sqrt([variance_N[group_N == group].mean() for group in range(len(levels))])
        axes.fill_between(levels, mean - spread, mean + spread, color=color, alpha=band, lw=0)
    axes.plot(levels, mean, color=color, lw=lw, ls=ls, zorder=3)
    if judge == "reward":
        axes.scatter(weight_N, reward_N, s=26, color=color, edgecolors="white", lw=0.8, zorder=4)


def _rank_note(before: Record | None, after: Record, k: int) -> str:
    metric = describe("spearman", table=EVALUATION_METRICS)
    values = [metric.show(record["spearman"][k]) for record in (before, after) if record is not None]
    return f"{metric.label} " + " \u2192 ".join(values)
