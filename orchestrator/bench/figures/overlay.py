"""Runs on one scale: their fronts, and each objective's reward against its weight."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator.bench.figures.style import INK, Record, by_level, drawing, objective_color
from orchestrator.bench.figures.text import legend_below

MARKERS = "os^DvP"
COLUMNS = 3


def plot_overlay(path: Path, names: Sequence[str], evaluations: Sequence[Record]) -> None:
    """A front for each pair of objectives, then a panel of reward over weight for each objective.

    Args:
        names: of the runs.
        evaluations: of each run one, all in one scale.
    """
    objectives = list(evaluations[0]["objectives"])
    pairs = list(itertools.combinations(range(len(objectives)), 2))
    panels = len(pairs) + len(objectives)
    columns = min(panels, COLUMNS)
    rows = math.ceil(panels / columns)
    with drawing(path, 4.0 * columns + 0.3, 3.8 * rows + 0.4) as figure:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, pair in zip(axes, pairs, strict=False):
            _draw_fronts(panel, evaluations, pair, objectives)
        for k, panel in enumerate(axes[len(pairs) : panels]):
            _draw_control(panel, evaluations, k, objectives[k])
        for panel in axes[panels:]:
            panel.set_visible(False)
        legend_below(figure, [_handle(index, name) for index, name in enumerate(names)], columns=2)


def _draw_fronts(axes: Axes, evaluations: Sequence[Record], pair: tuple[int, int], objectives: Sequence[str]) -> None:
    x, y = pair
    for index, each in enumerate(evaluations):
        points_NK = np.array(each["points"], dtype=float)
        if len(objectives) == 2:
            axes.plot(points_NK[:, x], points_NK[:, y], color=objective_color(index), lw=1.2, alpha=0.6)
        axes.scatter(
            points_NK[:, x], points_NK[:, y], s=34, marker=MARKERS[index % len(MARKERS)], color=objective_color(index),
            edgecolors="white", lw=0.8, zorder=3,
        )  # fmt: skip
    axes.set_title("Front" if len(objectives) == 2 else f"{objectives[x]}, {objectives[y]}")
    axes.set_xlabel(f"{objectives[x]} (normalised)", color=INK)
    axes.set_ylabel(f"{objectives[y]} (normalised)", color=INK)


def _draw_control(axes: Axes, evaluations: Sequence[Record], k: int, name: str) -> None:
    for index, each in enumerate(evaluations):
        weight_N = np.array(each["preferences"], dtype=float)[:, k].round(6)
        reward_N = np.array(each["points"], dtype=float)[:, k]
        levels, means = by_level(weight_N, reward_N)
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(levels, means, color=objective_color(index), marker=marker, ms=4.5, lw=1.8)
    axes.set_title(name)
    axes.set_xlabel(f"weight on {name}")
    axes.set_ylabel("normalised reward")


def _handle(index: int, name: str) -> Line2D:
    marker = MARKERS[index % len(MARKERS)]
    return Line2D([], [], color=objective_color(index), marker=marker, ms=6, lw=1.8, label=name)
