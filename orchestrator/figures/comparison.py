"""Methods side by side: fronts, and metrics against generated tokens. Means over seeds; thin lines are single seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from orchestrator.figures.style import START, STYLE, mixed_colors, new_figure, objective_color, save

if TYPE_CHECKING:
    from orchestrator.compare.results import CellResult, Results

CURVES = (("mip", "MIP"), ("hypervolume", "hypervolume"), ("crd", "CRD"), ("kl_to_start", "KL to the start (nats)"))


def plot_fronts(path: Path, results: Results) -> None:
    """The first two objectives' mean reward under each vector, one panel for each method, all on one scale."""
    columns = min(len(results.methods), 3)
    rows = math.ceil(len(results.methods) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.9 * columns + 0.3, 3.7 * rows)
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
        save(figure, path)


def plot_curves(path: Path, results: Results) -> None:
    """Each metric over training, against generated tokens."""
    shown = [
        (key, label)
        for key, label in CURVES
        if all(side.get(key) is not None for cell in results.cells for side in cell.evaluations)
    ]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.6 * len(shown) + 0.3, 3.8)
        grid = figure.subplots(1, len(shown), squeeze=False)
        for axes, (key, label) in zip(grid.flat, shown, strict=True):
            for index, method in enumerate(results.methods):
                cells = results.of(method)
                tokens = np.mean([[side["generated_tokens"] for side in cell.evaluations] for cell in cells], axis=0)
                values = np.array([[side[key] for side in cell.evaluations] for cell in cells], dtype=float)
                color = objective_color(index)
                axes.plot(tokens / 1e3, values.mean(axis=0), color=color, lw=2, marker="o", ms=4, label=method)
                if len(cells) > 1:
                    axes.plot(tokens / 1e3, values.T, color=color, lw=0.6, alpha=0.4)
            axes.set_title(label)
            axes.set_xlabel("generated tokens (thousands)")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
        save(figure, path)


def _mean_points(cells: list[CellResult], index: int) -> np.ndarray:
    """Mean over seeds of the mean points [N, K] of an evaluation."""
    return np.mean([cell.evaluations[index]["points"] for cell in cells], axis=0)
