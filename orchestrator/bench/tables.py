"""The tables of a comparison, as rows of text cells; `lines.as_text` and `as_markdown` lay them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.bench.results import CellResult, Results
from orchestrator.bench.statistics import at_kl, estimate, paired_difference

Table = list[list[str]]
BASELINE = "mi-epo"
"""The method that paired differences are taken to."""
KL_LEVELS = (1.0, 2.0, 4.0)
"""Nats from the start at which methods are compared at equal drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Example: Metric(label="MIP", of=lambda evaluation: evaluation["mip"], digits=3, better="higher")"""

    label: str
    of: Callable[[dict[str, Any]], float | None]
    digits: int
    better: str = ""  # "higher" | "lower" | "" (neither)

    @property
    def heading(self) -> str:
        return self.label + {"higher": " ↑", "lower": " ↓", "": ""}[self.better]


def _mean(key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda side: float(np.mean(side[key])) if side.get(key) is not None else None


def _share(key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda side: (side.get("fraction_of_attainable") or {}).get(key)


def _audit(key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda side: (side.get("audit") or {}).get(key)


def _key(key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda side: side.get(key)


QUALITY = (
    Metric(label="MIP", of=_key("mip"), digits=3, better="higher"),
    Metric(label="hypervolume", of=_key("hypervolume"), digits=2, better="higher"),
    Metric(label="CRD", of=_key("crd"), digits=3, better="lower"),
    Metric(label="Spearman", of=_mean("spearman"), digits=2, better="higher"),
    Metric(label="IGD+", of=_key("igd_plus"), digits=3, better="lower"),
    Metric(label="steering gap", of=_key("steering_gap"), digits=3, better="lower"),
)
CONTROL = (
    Metric(label="Kendall", of=_mean("kendall"), digits=2, better="higher"),
    Metric(label="neighbour overlap", of=_key("neighbour_overlap"), digits=3, better="lower"),
    Metric(label="identification", of=_key("identification_accuracy"), digits=3, better="higher"),
    Metric(label="information (nats)", of=_key("information_nats"), digits=3, better="higher"),
    Metric(label="sparsity", of=_key("sparsity"), digits=3),
)
TRUTH = (
    Metric(label="audit MIP", of=_audit("mip"), digits=3, better="higher"),
    Metric(label="MIP, share of attainable", of=_share("mip"), digits=3, better="higher"),
    Metric(label="hypervolume, share of attainable", of=_share("hypervolume"), digits=3, better="higher"),
    Metric(label="KL to start", of=_key("kl_to_start"), digits=2),
    Metric(label="length", of=_key("response_length"), digits=1),
    Metric(label="distinct", of=_key("distinct_responses"), digits=3),
)
SWEPT = (*QUALITY[:4], CONTROL[3], TRUTH[0], TRUTH[3])


def quality_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Mean over seeds with its 95 % interval, one row for each method; the start is the first row."""
    rows = [["method", *(metric.heading for metric in metrics)]]
    start = [cell.evaluations[0] for cell in results.of(results.methods[0])]
    rows.append(["(start)", *(estimate([metric.of(side) for side in start]).show(metric.digits) for metric in metrics)])
    for method in results.methods:
        after = [cell.after for cell in results.of(method)]
        shown = [estimate([metric.of(side) for side in after]).show(metric.digits) for metric in metrics]
        rows.append([method, *shown])
    return _without_empty_columns(rows)


def difference_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Method minus MI-EPO, paired by seed, with its 95 % interval; empty when MI-EPO was not run."""
    if BASELINE not in results.methods:
        return []
    baseline = [cell.after for cell in results.of(BASELINE)]
    rows = [["method", *(metric.heading for metric in metrics)]]
    for method in results.methods:
        if method == BASELINE:
            continue
        after = [cell.after for cell in results.of(method)]
        differences = [
            paired_difference([metric.of(side) for side in after], [metric.of(side) for side in baseline])
            for metric in metrics
        ]
        rows.append([method, *(d.show(metric.digits) for d, metric in zip(differences, metrics, strict=True))])
    return _without_empty_columns(rows)


def matched_kl_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Every method where its own training curve first reaches each of `KL_LEVELS`, seed by seed.

    A dash where not every seed of the method gets so far; empty when the KL was not measured.
    """
    cells = [cell for method in results.methods for cell in results.of(method)]
    if any(side.get("kl_to_start") is None for cell in cells for side in cell.evaluations):
        return []
    columns = [(metric, level) for metric in metrics for level in KL_LEVELS]
    rows = [["method", *(f"{metric.heading} at {level:g} nats" for metric, level in columns)]]
    for method in results.methods:
        shown = []
        for metric, level in columns:
            values = [_at(cell, metric, level) for cell in results.of(method)]
            shown.append("-" if None in values else estimate(values).show(metric.digits))
        rows.append([method, *shown])
    return _without_empty_columns(rows)


def _at(cell: CellResult, metric: Metric, kl: float) -> float | None:
    curve = [(side["kl_to_start"], metric.of(side)) for side in cell.evaluations]
    known = [(float(at), float(value)) for at, value in curve if value is not None]
    return at_kl(known, kl) if len(known) == len(curve) else None


def cost_table(results: Results) -> Table:
    """What a run of each method cost, mean over seeds."""
    rows = [["method", "at", "prompts", "generated tokens", "learner tokens", "training seconds"]]
    for method in results.methods:
        cells = results.of(method)
        rows.append(
            [
                method,
                f"{cells[0].knob} {cells[0].value:g}",
                estimate([cell.prompts for cell in cells]).show(0),
                estimate([cell.generated_tokens for cell in cells]).show(0),
                estimate([cell.learner_tokens for cell in cells]).show(0),
                estimate([cell.seconds for cell in cells]).show(0),
            ]
        )
    return rows


def tuning_table(results: Results) -> Table:
    """What was measured under the tuning seed at each value tried; empty when nothing was tuned."""
    rows = [["method", "setting", "value: MIP (audit MIP, KL)", "chosen"]]
    for method in results.methods:
        tried = [cell for cell in results.tuning if cell.method == method]
        if tried:
            found = "; ".join(f"{cell.value:g}: {cell.after['mip']:.3f} ({_aside(cell)})" for cell in tried)
            chosen, values = results.of(method)[0].value, [cell.value for cell in tried]
            at_edge = " (edge of the grid)" if chosen in (min(values), max(values)) else ""
            rows.append([method, tried[0].knob, found, f"{chosen:g}{at_edge}"])
    return rows if len(rows) > 1 else []


def _aside(cell: CellResult) -> str:
    known = ((TRUTH[0], 3), (TRUTH[3], 1))
    shown = [(metric.of(cell.after), digits) for metric, digits in known]
    return ", ".join("-" if value is None else f"{value:.{digits}f}" for value, digits in shown)


def sweep_table(results: Results, metrics: Sequence[Metric]) -> Table:
    """Mean over seeds with its interval at each value of the sweep; empty without one."""
    sweep = results.sweep
    if sweep is None:
        return []
    rows = [[sweep.key, *(metric.heading for metric in metrics)]]
    for value, method in zip(sweep.values, sweep.methods, strict=True):
        after = [cell.after for cell in results.of(method)]
        shown = [estimate([metric.of(side) for side in after]).show(metric.digits) for metric in metrics]
        rows.append([f"{value:g}" + (" (the recipe's)" if method == results.methods[0] else ""), *shown])
    return _without_empty_columns(rows)


def _without_empty_columns(rows: Table) -> Table:
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] != "-" for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def as_markdown(table: Table) -> str:
    head, *body = table
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
