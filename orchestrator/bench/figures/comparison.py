"""Methods side by side: fronts, and metrics against generated tokens. Means over seeds; thin lines are single seeds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.bench.figures.style import START, by_level, drawing, mixed_colors, objective_color
from orchestrator.bench.figures.text import legend_below
from rewards.metrics import EVALUATION_METRICS, describe

if TYPE_CHECKING:
    from orchestrator.bench.cells import CellResult, Results

DISTRIBUTIONS = 5
"""Vectors of the grid whose reward distributions are drawn."""
CURVES = ("mip", "hypervolume", "crd", "kl_to_start")


def plot_fronts(path: Path, results: Results) -> None:
    """The first two objectives' mean reward under each vector, one panel for each method, all on one scale."""
    columns = min(len(results.methods), 3)
    rows = math.ceil(len(results.methods) / columns)
    with drawing(path, 3.9 * columns + 0.3, 3.7 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel, axes in enumerate(grid.flat):
            if panel >= len(results.methods):
                axes.set_visible(False)
                continue
            method = results.methods[panel]
            cells = results.of(method)
            preferences = np.array(cells[0].after["preferences"])
            path_order = preferences.shape[1] == 2
            start, after = _mean_points(cells, 0), _mean_points(cells, -1)
            for cell in cells if len(cells) > 1 and path_order else ():
                points = np.array(cell.after["points"])
                axes.plot(points[:, 0], points[:, 1], color="#BBBBBB", lw=0.8, zorder=1)
            if path_order:
                axes.plot(after[:, 0], after[:, 1], color="#555555", lw=1.1, zorder=2)
            axes.scatter(start[:, 0], start[:, 1], s=20, c="white", edgecolors=START, lw=1.0, zorder=3)
            axes.scatter(
                after[:, 0], after[:, 1], s=48, c=mixed_colors(preferences), edgecolors="white", lw=1.0, zorder=4
            )
            axes.set_title(method)
            axes.set_xlabel(f"{results.objectives[0]} (normalised)")
            if panel % columns == 0:
                axes.set_ylabel(f"{results.objectives[1]} (normalised)")


def plot_control(path: Path, results: Results) -> None:
    """Mean reward of each objective against its own weight, a line for each method."""
    count = len(results.objectives)
    with drawing(path, 3.9 * count + 0.3, 3.8) as figure:
        grid = figure.subplots(1, count, squeeze=False, sharey=True)
        for k, axes in enumerate(grid.flat):
            for index, method in enumerate(results.methods):
                cells = results.of(method)
                weight, reward = np.array(cells[0].after["preferences"])[:, k].round(6), _mean_points(cells, -1)[:, k]
                axes.plot(
                    *by_level(weight, reward), color=objective_color(index), lw=1.8, marker="o", ms=3.5, label=method
                )
            axes.set_title(results.objectives[k])
            axes.set_xlabel(f"weight on {results.objectives[k]}")
        grid.flat[0].set_ylabel("normalised reward")
        legend_below(figure, grid.flat[0].get_legend_handles_labels()[0], columns=3)


def plot_distributions(path: Path, results: Results) -> None:
    """Rewards under five vectors, as fitted normals; where two neighbours overlap is shaded. First seed."""
    rows, columns = len(results.methods), len(results.objectives)
    with drawing(path, 3.9 * columns + 0.3, 1.9 * rows + 0.4) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex="col")
        for row, method in enumerate(results.methods):
            after = results.of(method)[0].after
            preferences = np.array(after["preferences"])
            shown = np.linspace(0, len(preferences) - 1, DISTRIBUTIONS).round().astype(int)
            colors = mixed_colors(preferences[shown])
            for k in range(columns):
                axes = grid[row, k]
                mean = np.array(after["points"])[shown, k]
                deviation = np.sqrt(np.array(after["covariance"])[shown, k, k]) + 1e-6
                at = np.linspace(mean.min() - 3, mean.max() + 3, 400)
                density = np.exp(-0.5 * ((at - mean[:, None]) / deviation[:, None]) ** 2) / deviation[:, None]
                for curve, color in zip(density, colors, strict=True):
                    axes.plot(at, curve, color=color, lw=1.6)
                for left, right in itertools.pairwise(density):
                    axes.fill_between(at, np.minimum(left, right), color="#777777", alpha=0.25, lw=0)
                axes.set_yticks([])
                axes.set_title(f"{method}: {results.objectives[k]}", fontsize=9)
        for axes, name in zip(grid[-1], results.objectives, strict=True):
            axes.set_xlabel(f"{name} (normalised)")


def plot_curves(path: Path, results: Results) -> None:
    """Each metric over training, against generated tokens."""
    compared = [cell for method in results.methods for cell in results.of(method)]
    shown = [
        describe(key, table=EVALUATION_METRICS)
        for key in CURVES
        if all(side.get(key) is not None for cell in compared for side in cell.evaluations)
    ]
    with drawing(path, 3.6 * len(shown) + 0.3, 3.8) as figure:
        grid = figure.subplots(1, len(shown), squeeze=False)
        for axes, metric in zip(grid.flat, shown, strict=True):
            for index, method in enumerate(results.methods):
                cells = results.of(method)
                tokens = np.mean([[side["generated_tokens"] for side in cell.evaluations] for cell in cells], axis=0)
                values = np.array([[metric.of(side) for side in cell.evaluations] for cell in cells], dtype=float)
                color = objective_color(index)
                axes.plot(tokens / 1e3, values.mean(axis=0), color=color, lw=2, marker="o", ms=4, label=method)
                if len(cells) > 1:
                    axes.plot(tokens / 1e3, values.T, color=color, lw=0.6, alpha=0.4)
            axes.set_title(metric.name)
            axes.set_xlabel(f"{describe('generated_tokens').label} (thousands)")
        legend_below(figure, grid.flat[0].get_legend_handles_labels()[0])


def _mean_points(cells: list[CellResult], index: int) -> np.ndarray:
    """Mean over seeds of the mean points [N, K] of an evaluation."""
    return np.mean([cell.evaluations[index]["points"] for cell in cells], axis=0)
