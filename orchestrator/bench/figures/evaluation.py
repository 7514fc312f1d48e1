"""An evaluation: where the policy stands under each vector; whether more weight on an objective brings more of it."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from orchestrator.bench.figures.style import (
    INK,
    START,
    Record,
    by_level,
    drawing,
    judged,
    mixed_colors,
    objective_color,
    score_name,
)
from orchestrator.bench.figures.text import legend_below, place_labels
from orchestrator.bench.summary import JUDGES
from rewards.metrics import EVALUATION_METRICS, describe


def plot_pareto(path: Path, before: Record | None, after: Record) -> None:
    """Mean point per preference vector over its responses: the starting policy in grey, the trained one in colour.

    Two objectives: one panel; more: one per pair. With an audit judge, a second row or column in its scores, where the
    attainable front is drawn when it is known.
    """
    objectives = list(after["objectives"])
    if len(objectives) == 1:
        _plot_single_objective(path, before, after)
        return
    pairs = list(itertools.combinations(range(len(objectives)), 2))
    judges = ["reward", "audit"] if after.get("audit") else ["reward"]
    panels = list(itertools.product(judges, pairs))
    columns = min(len(panels), 3)  # two judges of one pair stand side by side, those of three pairs above each other
    rows = math.ceil(len(panels) / columns)
    key_width = 0.05 if len(objectives) == 2 else 0.5 if len(objectives) == 3 else 0.01
    width = 4.5 if columns < 3 else 3.6
    with drawing(path, width * (columns + key_width) + 0.3, width * rows + 0.4) as figure:
        grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1.0] * columns + [key_width])
        for index, (judge, pair) in enumerate(panels):
            axes = figure.add_subplot(grid[index // columns, index % columns])
            _draw_front(axes, before, after, judge, pair)
            axes.set_title(f"Scored {JUDGES[judge]}" if pair == pairs[0] else "")
            if columns == 3:
                axes.xaxis.label.set_fontsize(8.5)
                axes.yaxis.label.set_fontsize(8.5)
        _draw_weight_key(figure.add_subplot(grid[:, -1]), objectives)
        legend_below(figure, _front_legend(before, after))
        if len(objectives) == 2:
            _label_ends(figure.axes[0], before, after)


def _draw_front(axes: Axes, before: Record | None, after: Record, judge: str, pair: tuple[int, int]) -> None:
    x, y = pair
    objectives, preferences_NK = list(after["objectives"]), np.array(after["preferences"], dtype=float)
    path_order = len(objectives) == 2
    clouds, means = [np.empty((0, 2))], []
    for record, start in ((before, True), (after, False)):
        side = judged(record, judge)
        if record is None or side is None:
            continue
        colors_N3 = np.tile(to_rgb(START), (len(preferences_NK), 1)) if start else mixed_colors(preferences_NK)
        responses = record.get("cloud") if judge == "reward" else None
        if responses:
            counts = [len(scores_PK) for scores_PK in responses]
            cloud = np.array(list(itertools.chain.from_iterable(responses)), dtype=float).reshape(-1, len(objectives))
            colors = np.repeat(colors_N3, counts, axis=0)
            axes.scatter(cloud[:, x], cloud[:, y], s=7, c=colors, alpha=0.16 if start else 0.25, lw=0, zorder=1)
            clouds.append(cloud[:, [x, y]])
        points_NK = np.array(side["points"], dtype=float)
        means.append(points_NK[:, [x, y]])
        if path_order:
            axes.plot(points_NK[:, x], points_NK[:, y], color=START if start else "#555555", lw=1.1, zorder=2)
        style: dict[str, Any] = (
            {"s": 34, "c": "white", "edgecolors": START, "zorder": 3}
            if start
            else {"s": 58, "c": colors_N3, "edgecolors": "white", "zorder": 4}
        )
        axes.scatter(points_NK[:, x], points_NK[:, y], lw=1.2, **style)
    attainable = after.get("attainable")
    if attainable and attainable["judge"] == judge:
        best_NK = np.array(attainable["points"], dtype=float)
        means.append(best_NK[:, [x, y]])
        if path_order:
            best_NK = best_NK[np.argsort(best_NK[:, x], kind="stable")]
            axes.plot(best_NK[:, x], best_NK[:, y], color=INK, lw=1.3, ls=(0, (4, 2.5)), zorder=2.5)
        else:
            colors_N3 = mixed_colors(preferences_NK)
            axes.scatter(best_NK[:, x], best_NK[:, y], s=32, marker="x", c=colors_N3, lw=1.4, zorder=2.5)
    _limit(axes, np.concatenate(clouds), np.concatenate(means))
    axes.axhline(0, color="#CFCFCF", lw=0.9, zorder=0)
    axes.axvline(0, color="#CFCFCF", lw=0.9, zorder=0)
    axes.set_xlabel(f"{objectives[x]}  ({score_name(judge)})", color=INK)
    axes.set_ylabel(f"{objectives[y]}  ({score_name(judge)})", color=INK)


def _label_ends(axes: Axes, before: Record | None, after: Record) -> None:
    """Say which weights the first, middle and last point stand for."""
    points_NK, preferences_NK = np.array(after["points"], dtype=float), np.array(after["preferences"], dtype=float)
    shown = [n for n in sorted({0, len(points_NK) // 2, len(points_NK) - 1}) if np.isfinite(points_NK[n]).all()]
    labels = [(points_NK[n], f"w = ({', '.join(f'{weight:.2g}' for weight in preferences_NK[n])})") for n in shown]
    start_NK = np.array(before["points"] if before is not None else [], dtype=float).reshape(-1, 2)
    place_labels(axes, labels, np.concatenate([points_NK, start_NK]))


def _draw_weight_key(axes: Axes, objectives: list[str]) -> None:
    """What the colours mean: a bar for two objectives, a triangle for three, nothing for more."""
    axes.grid(False)
    if len(objectives) == 2:
        along = np.linspace(0, 1, 256)
        axes.imshow(mixed_colors(np.stack([along, 1 - along], axis=1))[:, None], origin="lower", aspect="auto",
                    extent=(0, 1, 0, 1))  # fmt: skip
        axes.set_box_aspect(16)
        axes.set_xticks([])
        axes.set_yticks([0, 0.5, 1])
        axes.yaxis.tick_right()
        axes.tick_params(length=0)
        axes.yaxis.set_label_position("right")
        axes.set_ylabel(f"weight on {objectives[0]}")
        axes.spines[:].set_visible(False)
        return
    axes.set_axis_off()
    if len(objectives) == 3:
        corners = np.array([(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (0.5, math.sqrt(3) / 2, 1.0)])
        x, y = np.meshgrid(np.linspace(0, 1, 300), np.linspace(0, corners[2, 1], 260))
        weights = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) @ np.linalg.inv(corners)
        inside = np.asarray((weights >= -1e-9).all(axis=1))
        image = np.concatenate([mixed_colors(np.clip(weights, 0, 1)), inside[:, None]], axis=1).clip(0, 1)
        axes.imshow(image.reshape(*x.shape, 4), origin="lower", extent=(0, 1, 0, corners[2, 1]))
        for (cx, cy, _), name, below in zip(corners, objectives, (True, True, False), strict=True):
            axes.text(cx, cy + (-0.1 if below else 0.1), name, ha="center", va="center", fontsize=8.5)
        axes.text(0.5, 1.25, "colour of w", ha="center", va="center", fontsize=9, fontweight="bold")
        axes.set_xlim(-0.25, 1.25)
        axes.set_ylim(-0.25, 1.35)


def _front_legend(before: Record | None, after: Record) -> list[Line2D]:
    def dot(label: str, **style: Any) -> Line2D:
        return Line2D([], [], ls="none", marker="o", label=label, **style)

    label = "trained policy" if before is not None else "policy"
    handles = [dot(f"{label}, mean per w", mfc="#9A56A0", mec="white", ms=8)]
    if before is not None:
        handles.append(dot("starting policy, mean per w", mfc="white", mec=START, mew=1.2, ms=6))
    handles.append(dot("single responses", mfc="#9A56A0", mec="none", ms=3.5, alpha=0.5))
    if after.get("attainable"):
        dashed: dict[str, Any] = {"ls": (0, (4, 2.5)), "lw": 1.3}
        crosses: dict[str, Any] = {"ls": "none", "marker": "x"}
        style = dashed if len(after["objectives"]) == 2 else crosses
        handles.append(Line2D([], [], color=INK, label="attainable front", **style))
    return handles


def _plot_single_objective(path: Path, before: Record | None, after: Record) -> None:
    """One objective has no front: the distribution of its scores before and after."""
    with drawing(path, 6.4, 4) as figure:
        axes = figure.subplots()
        for record, label, color in ((before, "starting policy", START), (after, "policy", objective_color(0))):
            if record is not None:
                cloud = itertools.chain.from_iterable(record.get("cloud") or [])
                scores = np.array(list(cloud), dtype=float).ravel()
                axes.hist(scores[np.isfinite(scores)], bins=24, density=True, color=color, alpha=0.45, label=label)
                axes.axvline(np.array(record["points"], dtype=float).mean(), color=color, lw=2)
        axes.set_xlabel(f"{after['objectives'][0]}  ({score_name('reward')})")
        axes.set_ylabel("density of responses")
        axes.legend()


def _limit(axes: Axes, cloud: np.ndarray, means: np.ndarray) -> None:
    """Show every mean and all but the outermost half percent of the responses, with some air around them."""
    ends = []
    for rows, quantiles in ((cloud, (0.005, 0.995)), (means, (0, 1))):
        complete = rows[np.isfinite(rows).all(axis=1)]
        if len(complete):
            ends.append(np.quantile(complete, quantiles, axis=0))
    if not ends:
        return
    low, high = np.min([end[0] for end in ends], axis=0), np.max([end[1] for end in ends], axis=0)
    air = np.maximum(0.08 * (high - low), 0.05)
    axes.set_xlim(low[0] - air[0], high[0] + 1.6 * air[0])
    axes.set_ylim(low[1] - air[1], high[1] + 1.3 * air[1])


def plot_control(path: Path, before: Record | None, after: Record) -> None:
    """Each objective's mean reward against its own weight; the band is one standard deviation of the responses."""
    objectives = list(after["objectives"])
    columns = min(len(objectives), 3)
    rows = math.ceil(len(objectives) / columns)
    with drawing(path, 4.2 * columns + 0.4, 3.7 * rows + 0.6) as figure:
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
        legend_below(figure, handles)


def _draw_control(
    axes: Axes, record: Record, judge: str, k: int, *, color: str, band: float, ls: Any = "-", lw: float = 2
) -> None:
    side = judged(record, judge)
    if side is None:
        return
    weight_N = np.array(record["preferences"], dtype=float)[:, k].round(6)
    reward_N = np.array(side["points"], dtype=float)[:, k]
    levels, mean = by_level(weight_N, reward_N)
    covariance = record.get("covariance")
    if band and covariance is not None:
        variance_N = np.array([np.array(matrix, dtype=float)[k][k] for matrix in covariance])
        spread = np.sqrt(by_level(weight_N, variance_N)[1])
        axes.fill_between(levels, mean - spread, mean + spread, color=color, alpha=band, lw=0)
    axes.plot(levels, mean, color=color, lw=lw, ls=ls, zorder=3)
    if judge == "reward":
        axes.scatter(weight_N, reward_N, s=26, color=color, edgecolors="white", lw=0.8, zorder=4)


def _rank_note(before: Record | None, after: Record, k: int) -> str:
    metric = describe("spearman", table=EVALUATION_METRICS)
    values = [metric.show(record["spearman"][k]) for record in (before, after) if record is not None]
    return f"{metric.label} " + " \u2192 ".join(values)
