"""What a run reached, as numbers: summary.json and the before/after table.

Judges: ``reward``, the scorers the policy was trained on; ``audit``, the second judge that only evaluates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from orchestrator.bench.verdict import judge_training
from orchestrator.files import Record, finite
from rewards.bootstrap import Interval
from rewards.metrics import EVALUATION_METRICS, Metric, describe, evaluation_figures

SIDE_KEYS = {"points", "preferences", "prompt_intervals", "samples"}
SIDE_KEYS |= {metric.family for metric in EVALUATION_METRICS} - {"seconds"}
"""Without the wall time: equal runs have equal summaries."""
NOT_SHOWN = ("kendall", "sparsity", "igd_plus", "missing", "step", "policy_version", "seconds")
"""What the before/after table leaves to summary.json."""
JUDGES = {"reward": "by the reward models", "audit": "by the audit judge"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the before/after table.

    Example: ``Row(judge="audit", metric=describe("mip", table=EVALUATION_METRICS), before=0.26, after=0.91)``
    """

    judge: str  # "reward" | "audit"
    metric: Metric
    before: float | None
    after: float | None
    intervals: tuple[Interval | None, Interval | None] = (None, None)
    """Of before and after, 95 % over the choice of prompts; None where it was not measured."""

    def cells(self) -> list[str]:
        """Before, after and change as text."""
        before, after = self.before, self.after
        return [self.metric.show(before), self.metric.show(after), self.metric.change(before, after)]

    def interval(self, side: int) -> str:
        """Of before (0) or after (1), as text: `0.81 to 0.93`; empty where it was not measured."""
        found = self.intervals[side]
        return "" if found is None else " to ".join(map(self.metric.show, found))

    @property
    def gain(self) -> int:
        """1: better by more than the prompts explain, -1: worse by more, 0: neither, or nobody can tell."""
        if not self.metric.better or self.before is None or self.after is None or None in self.intervals:
            return 0
        change = self.after - self.before
        margin = math.hypot(*(ends[1] - ends[0] for ends in self.intervals if ends is not None)) / 2
        if abs(change) <= margin:
            return 0
        return 1 if (change > 0) == (self.metric.better == "higher") else -1


def summarize(before: Record | None, after: Record, run: Record) -> Record:
    """The content of summary.json; NaN and infinities become null. ``before`` is null with a single evaluation."""
    start = finite(summarize_side(before)) if before is not None else None
    end = finite(summarize_side(after))
    verdict = judge_training(start, end)
    return finite(
        {
            "name": run.get("name"),
            "method": run.get("method"),
            "seed": run.get("seed"),
            "status": run.get("status"),
            "seconds": _seconds(run),
            "objectives": after["objectives"],
            "verdict": asdict(verdict) if verdict is not None else None,
            "before": start,
            "after": end,
            "attainable": after.get("attainable"),
            "reference_point": after.get("reference_point"),
            "normalizer": after.get("normalizer"),
            "audit_normalizer": (after.get("audit") or {}).get("normalizer"),
        }
    )


def summary_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """The closing table as text: a heading row, then metric, before, after and change; all rows have four cells."""
    table = [["metric", "before", "after", "change"]]
    judge = None
    for row in metric_rows(summary):
        if row.judge != judge:
            judge = row.judge
            table.append([JUDGES[judge], "", "", ""])
        table.append([f"  {row.metric.name}", *row.cells()])
    return table


def metric_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Every line of the before/after table: first by the reward models, then by the audit judge where there is one."""
    before, after = (evaluation_figures(summary[side] or {}, summary["objectives"]) for side in ("before", "after"))
    attainable = summary["after"]["fraction_of_attainable"] or {}
    rows = []
    for key in dict.fromkeys([*after, *before]):
        own = key.removeprefix("audit/")
        family = own.partition("/")[0]
        judge = attainable.get("judge") if family == "fraction_of_attainable" else "reward" if own == key else "audit"
        if family not in NOT_SHOWN:
            metric = describe(own, table=EVALUATION_METRICS)
            sides = [summary[side] or {} for side in ("before", "after")]
            first, last = (_interval(side, key, summary["objectives"]) for side in sides)
            row = Row(
                judge=str(judge), metric=metric, before=before.get(key), after=after.get(key), intervals=(first, last)
            )
            rows.append(row)
    return sorted(rows, key=lambda row: row.judge == "audit")


def _interval(side: Mapping[str, Any], key: str, objectives: Sequence[str]) -> Interval | None:
    """`key`: as `evaluation_figures` names it."""
    own = key.removeprefix("audit/")
    judged = side if own == key else side.get("audit") or {}
    family, _, member = own.partition("/")
    found = (judged.get("prompt_intervals") or {}).get(family)
    if member in objectives and found is not None:
        found = found[list(objectives).index(member)]
    if found is None or None in found:
        return None
    low, high = found
    return low, high


def summarize_side(record: Record) -> Record:
    """One evaluation as it stands in summary.json: without covariances, clouds and examples."""
    side = {key: value for key, value in record.items() if key in SIDE_KEYS}
    audit, attainable = record.get("audit"), record.get("attainable")
    side["audit"] = {key: value for key, value in audit.items() if key != "covariance"} if audit else None
    side["fraction_of_attainable"] = None
    if attainable:
        judged = (audit or {}) if attainable.get("judge") == "audit" else record
        side["fraction_of_attainable"] = {"judge": attainable.get("judge")} | {
            key: judged[key] / attainable[key]
            for key in ("mip", "hypervolume")
            if judged.get(key) is not None and (attainable.get(key) or 0) > 0
        }
    return side


def _seconds(run: Record) -> float | None:
    if run.get("seconds") is not None:
        return float(run["seconds"])
    try:
        return (datetime.fromisoformat(run["end"]) - datetime.fromisoformat(run["start"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
