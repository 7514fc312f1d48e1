"""The course of training, from metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from orchestrator.bench.figures.style import COLORS, INK, START, Record, drawing, objective_color
from rewards.metrics import describe


def plot_training(path: Path, metrics: Sequence[Record], objectives: Sequence[str], normalizer: Record | None) -> None:
    """Losses, rewards, identification, drift, gradient and seconds per stage over optimizer steps."""
    with drawing(path, 11.4, 6.4) as figure:
        loss, reward, identification, drift, gradient, seconds = figure.subplots(2, 3).flat
        steps = np.array([record["step"] + 1 for record in metrics])
        if len(steps) == 0:
            figure.clear()
            figure.text(0.5, 0.5, "no optimizer steps in this run", ha="center", fontsize=13, color="#777777")
            return
        parts = ("loss", "loss_alignment", "loss_identifiability")
        _draw_curves(loss, steps, metrics, parts, (INK, COLORS[0], COLORS[1]))
        _draw_rewards(reward, steps, metrics, objectives, normalizer)
        shares = ("identification_accuracy", "pair_conflict_rate", "pair_tie_rate")
        _draw_curves(identification, steps, metrics, shares, (COLORS[0], COLORS[4], START))
        identification.axhline(0.5, color="#B0B0B0", lw=1, ls=(0, (2, 2)))
        identification.set_ylim(-0.02, 1.02)
        identification.set_title("Identification and pairs (share)")
        _draw_curves(drift, steps, metrics, ("logratio_mean",), (COLORS[2],))
        drift.axhline(0, color="#B0B0B0", lw=1, ls=(0, (2, 2)))
        _draw_curves(gradient, steps, metrics, ("grad_norm",), (COLORS[3],))
        gradient.set_ylim(bottom=0)
        _draw_seconds(seconds, steps, metrics)
        for axes in (loss, reward, identification, drift, gradient, seconds):
            axes.set_xlim(1, max(2, int(steps.max())))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            if axes is not seconds and axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best", handlelength=1.4, labelspacing=0.3)
        for axes in (drift, gradient, seconds):
            axes.set_xlabel("optimizer step")


def _draw_curves(
    axes: Axes, steps: np.ndarray, metrics: Sequence[Record], keys: Sequence[str], colors: Sequence[str]
) -> None:
    """Under the first one's name; a single curve needs no label."""
    axes.set_title(describe(keys[0]).name.capitalize())
    for key, color in zip(keys, colors, strict=True):
        _draw_curve(axes, steps, _column(metrics, key), color, describe(key).label if len(keys) > 1 else "")


def _draw_rewards(
    axes: Axes, steps: np.ndarray, metrics: Sequence[Record], objectives: Sequence[str], normalizer: Record | None
) -> None:
    for k, name in enumerate(objectives):
        mean = _column(metrics, f"reward_mean/{name}")
        if normalizer is not None:
            mean = (mean - normalizer["mean"][k]) / normalizer["std"][k]
        _draw_curve(axes, steps, mean, objective_color(k), name)
    axes.set_title("Mean batch reward" + (" (normalised)" if normalizer is not None else " (raw)"))


def _draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """The values faintly, and their moving average."""
    finite = np.isfinite(values)
    if not finite.any():
        return
    axes.plot(steps[finite], values[finite], color=color, lw=0.9, alpha=0.35)
    axes.plot(steps[finite], _smooth(values[finite]), color=color, lw=2, label=label or None)


def _draw_seconds(axes: Axes, steps: np.ndarray, metrics: Sequence[Record]) -> None:
    stages = ("generate", "score", "learn", "sync")
    seconds = [np.nan_to_num(_smooth(np.nan_to_num(_column(metrics, f"seconds/{stage}")))) for stage in stages]
    colors = (COLORS[0], COLORS[4], COLORS[2], COLORS[3])
    axes.stackplot(steps, seconds, labels=stages, colors=colors, alpha=0.75, lw=0)
    wall = _smooth(np.nan_to_num(_column(metrics, "seconds/step")))
    axes.plot(steps, wall, color=INK, lw=1.6, label="wall time of a step")
    axes.set_ylim(0, max(1e-3, 1.35 * float(np.max([np.sum(seconds, axis=0).max(), wall.max()]))))
    axes.legend(loc="upper center", ncols=3, handlelength=1.4, columnspacing=1.2, labelspacing=0.3)
    axes.set_title("Seconds per stage")


def _column(metrics: Sequence[Record], key: str) -> np.ndarray:
    return np.array([record.get(key) for record in metrics], dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over about a tenth of the run, centred; one-sided at the ends."""
    half = len(values) // 20
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)
