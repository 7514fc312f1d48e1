"""The tables of a comparison, as rows of text cells; `files.as_text` and `as_markdown` lay them out.

Means over seeds come with their 95 % intervals; NaN stands for "cannot be said".
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.bench.cells import CellResult, Results
from rewards.metrics import EVALUATION_METRICS, Metric, describe

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Quantile .975 of Student's t for 1, 2, ... degrees of freedom."""
LEAST_SEEDS = 3
"""Under two, the interval of a mean is nine times as wide as their spread: no interval says more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Example: Estimate(mean=0.91, half_width=0.04, count=5)"""

    mean: float
    half_width: float  # of the 95 % interval of the mean over seeds; NaN with fewer than `LEAST_SEEDS`
    count: int

    def show(self, digits: int) -> str:
        if not np.isfinite(self.mean):
            return "-"
        interval = f" ± {self.half_width:.{digits}f}" if np.isfinite(self.half_width) else ""
        return f"{self.mean:.{digits}f}{interval}"


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and half width of its 95 % t interval, from `LEAST_SEEDS` on; missing values are left out."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)], dtype=float)
    if not len(known):
        return Estimate(mean=float("nan"), half_width=float("nan"), count=0)
    half_width = float("nan")
    if len(known) >= LEAST_SEEDS:
        half_width = float(t_975(len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Estimate(mean=float(known.mean()), half_width=half_width, count=len(known))


def paired_difference(values: Sequence[float | None], baseline: Sequence[float | None]) -> Estimate:
    """Estimate of values - baseline, seed by seed; both in the order of the same seeds."""
    return estimate(
        [
            None if value is None or other is None else value - other
            for value, other in zip(values, baseline, strict=True)
        ]
    )


def t_975(degrees: int) -> float:
    """Quantile .975 of Student's t; beyond the table the first two terms of its expansion (error below 1e-3)."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be >= 1, got {degrees}")
    return T_975[degrees - 1] if degrees <= len(T_975) else 1.95996 + 2.3723 / degrees


def at_kl(curve: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Value of a training curve [(kl_to_start, value), ...] in training order where it first reaches `kl`.

    Linear between evaluations. None when the curve never gets there.
    """
    for (kl_0, value_0), (kl_1, value_1) in itertools.pairwise(curve):
        if kl_0 <= kl <= kl_1:
            share = (kl - kl_0) / (kl_1 - kl_0) if kl_1 > kl_0 else 1.0
            return value_0 + share * (value_1 - value_0)
    return None


Table = list[list[str]]
BASELINE = "mi-epo"
"""The method that paired differences are taken to."""
KL_LEVELS = (1.0, 2.0, 4.0)
"""Nats from the start at which methods are compared at equal drift."""


def _metrics(*keys: str) -> tuple[Metric, ...]:
    return tuple(describe(key, table=EVALUATION_METRICS) for key in keys)


QUALITY = _metrics("mip", "hypervolume", "crd", "spearman", "igd_plus", "steering_gap")
CONTROL = _metrics("kendall", "neighbour_overlap", "identification_accuracy", "information_nats", "sparsity")
TRUTH = _metrics(
    *("audit/mip", "fraction_of_attainable/mip", "fraction_of_attainable/hypervolume"),
    *("kl_to_start", "start_logprob", "response_length", "distinct_responses"),
)
SWEPT = (*QUALITY[:4], CONTROL[3], TRUTH[0], TRUTH[3])
COST = tuple(map(describe, ("prompts", "generated_tokens", "learner_tokens", "labels")))


def quality_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Mean over seeds with its 95 % interval, one row for each method; the start is the first row."""
    cells = results.of(results.methods[0])
    start = [[metric.of(cell.evaluations[0]) for cell in cells] for metric in metrics]
    values = {"(start)": start} | {method: _after(results, method, metrics) for method in results.methods}
    return _table("method", metrics, {name: map(estimate, row) for name, row in values.items()})


def difference_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Method minus MI-EPO, paired by seed, with its 95 % interval; empty when MI-EPO was not run."""
    if BASELINE not in results.methods:
        return []
    baseline = _after(results, BASELINE, metrics)
    others = [method for method in results.methods if method != BASELINE]
    differences = {method: map(paired_difference, _after(results, method, metrics), baseline) for method in others}
    return _table("method", metrics, differences)


def matched_kl_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Every method where its own training curve first reaches each of `KL_LEVELS`, seed by seed.

    A dash where not every seed of the method gets so far; empty when the KL was not measured.
    """
    cells = [cell for method in results.methods for cell in results.of(method)]
    if any(side.get("kl_to_start") is None for cell in cells for side in cell.evaluations):
        return []
    columns = [(metric, level) for metric in metrics for level in KL_LEVELS]
    values = {
        method: [[_at(cell, metric, level) for cell in results.of(method)] for metric, level in columns]
        for method in results.methods
    }
    reached = {method: [estimate([] if None in seeds else seeds) for seeds in row] for method, row in values.items()}
    headings = [f"{metric.heading} at {level:g} nats" for metric, level in columns]
    return _table("method", [metric for metric, _ in columns], reached, headings)


def _at(cell: CellResult, metric: Metric, kl: float) -> float | None:
    curve = [(side["kl_to_start"], metric.of(side)) for side in cell.evaluations]
    known = [(float(at), float(value)) for at, value in curve if value is not None]
    return at_kl(known, kl) if len(known) == len(curve) else None


def cost_table(results: Results) -> Table:
    """What a run of each method cost, mean over seeds."""
    rows = [["method", "at", *(metric.name for metric in COST), "training seconds"]]
    for method in results.methods:
        cells = results.of(method)
        spent = [_cell(metric, estimate([getattr(cell, metric.key) for cell in cells])) for metric in COST]
        seconds = estimate([cell.seconds for cell in cells]).show(0)
        rows.append([method, f"{cells[0].knob} {cells[0].value:g}", *spent, seconds])
    return rows


def tuning_table(results: Results) -> Table:
    """What was measured under the tuning seed at each value tried; empty when nothing was tuned."""
    mip, *aside = QUALITY[0], TRUTH[0], TRUTH[3]
    rows = [["method", "setting", f"value: {mip.label} ({', '.join(metric.name for metric in aside)})", "chosen"]]
    for method in results.methods:
        tried = [cell for cell in results.tuning if cell.method == method]
        if tried:
            shown = [[metric.show(metric.of(cell.after)) for metric in (mip, *aside)] for cell in tried]
            found = "; ".join(
                f"{cell.value:g}: {first} ({', '.join(others)})"
                for cell, (first, *others) in zip(tried, shown, strict=True)
            )
            chosen, values = results.of(method)[0].value, [cell.value for cell in tried]
            at_edge = " (edge of the grid)" if chosen in (min(values), max(values)) else ""
            rows.append([method, tried[0].knob, found, f"{chosen:g}{at_edge}"])
    return rows if len(rows) > 1 else []


def sweep_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Mean over seeds with its interval at each value of the sweep; empty without one."""
    sweep = results.sweep
    if sweep is None:
        return []
    swept = zip(sweep.values, sweep.methods, strict=True)
    own = results.methods[0]
    rows = {f"{value:g}" + (" (the recipe's)" if method == own else ""): method for value, method in swept}
    values = {name: map(estimate, _after(results, method, metrics)) for name, method in rows.items()}
    return _table(sweep.key, metrics, values)


def _after(results: Results, method: str, metrics: Sequence[Metric]) -> list[list[float | None]]:
    """[metrics][seeds] after training."""
    return [[metric.of(cell.after) for cell in results.of(method)] for metric in metrics]


def _table(
    corner: str, metrics: Sequence[Metric], rows: Mapping[str, Iterable[Estimate]], headings: Sequence[str] = ()
) -> Table:
    """Without the columns of which nothing is known."""
    table = [[corner, *(headings or [metric.heading for metric in metrics])]]
    table += [[name, *map(_cell, metrics, row)] for name, row in rows.items()]
    kept = [i for i in range(len(table[0])) if i == 0 or any(row[i] != "-" for row in table[1:])]
    return [[row[i] for i in kept] for row in table]


def _cell(metric: Metric, found: Estimate) -> str:
    return " ± ".join(metric.show(value) for value in (found.mean, found.half_width) if np.isfinite(value)) or "-"


def as_markdown(table: Table, *, aligned: bool = False) -> str:
    """`aligned`: all columns but the first to the right."""
    head, *body = ("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in table)
    columns = len(table[0])
    rule = "|---|" + "---:|" * (columns - 1) if aligned else "| " + " | ".join(["---"] * columns) + " |"
    return "\n".join([head, rule, *body])
