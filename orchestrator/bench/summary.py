"""What a run reached, as numbers: summary.json and the before/after table.

Judges: ``reward``, the scorers the policy was trained on; ``audit``, the second judge that only evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.lines import Record, finite

SIDE_KEYS = (
    "step",
    "policy_version",
    "hypervolume",
    "mip",
    "crd",
    "spearman",
    "prompt_intervals",
    "kendall",
    "steering_gap",
    "sparsity",
    "neighbour_overlap",
    "identification_accuracy",
    "information_nats",
    "kl_to_start",
    "distinct_responses",
    "response_length",
    "missing",
    "points",
    "preferences",
)
JUDGES = {"reward": "by the reward models", "audit": "by the audit judge"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the before/after table.

    Example: ``Row(judge="audit", label="MIP", before=0.26, after=0.91, digits=3, better="higher", relative=False)``
    """

    judge: str  # "reward" | "audit"
    label: str
    before: float | None
    after: float | None
    digits: int
    better: str = ""  # "higher" | "lower" | "" (neither)
    relative: bool = False  # the change is told in percent
    percent: bool = False  # the value is a share, told in percent

    def cells(self) -> list[str]:
        """Before, after and change as text."""
        return [self._show(self.before), self._show(self.after), self._change()]

    def _show(self, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{100 * value:.1f}%" if self.percent else f"{value:.{self.digits}f}"

    def _change(self) -> str:
        if self.before is None or self.after is None:
            return ""
        difference = self.after - self.before
        if self.relative:
            return f"{100 * difference / abs(self.before):+.0f}%" if self.before else ""
        return f"{100 * difference:+.1f} pts" if self.percent else f"{difference:+.{self.digits}f}"


def summarize(before: Record | None, after: Record, run: Record) -> Record:
    """The content of summary.json; NaN and infinities become null. ``before`` is null with a single evaluation."""
    return finite(
        {
            "name": run.get("name"),
            "method": run.get("method"),
            "seed": run.get("seed"),
            "status": run.get("status"),
            "seconds": _seconds(run),
            "objectives": after["objectives"],
            "before": summarize_side(before) if before is not None else None,
            "after": summarize_side(after),
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
        table.append([f"  {row.label}", *row.cells()])
    return table


def metric_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Every line of the before/after table: first by the reward models, then by the audit judge where there is one."""
    before, after = summary["before"] or {}, summary["after"]
    objectives = list(summary["objectives"])

    def row(judge: str, label: str, values: Sequence[float | None], digits: int, **style: Any) -> None:
        if any(value is not None for value in values):
            rows.append(Row(judge=judge, label=label, before=values[0], after=values[1], digits=digits, **style))

    def values(*path: str) -> list[Any]:
        """The entry at ``path`` before and after."""
        found = []
        for side in (before, after):
            for key in path:
                side = (side or {}).get(key)
            found.append(side)
        return found

    rows: list[Row] = []
    for judge in ("reward", "audit") if after.get("audit") else ("reward",):
        at = ("audit",) if judge == "audit" else ()
        row(judge, "MIP", values(*at, "mip"), 3, better="higher")
        row(judge, "hypervolume", values(*at, "hypervolume"), 2, better="higher", relative=True)
        row(judge, "CRD", values(*at, "crd"), 3, better="lower", relative=True)
        row(judge, "steering gap", values(*at, "steering_gap"), 3, better="lower")
        row(judge, "overlap of neighbours", values(*at, "neighbour_overlap"), 3, better="lower")
        for k, name in enumerate(objectives):
            correlations = [(ranks or [None] * len(objectives))[k] for ranks in values(*at, "spearman")]
            row(judge, f"Spearman, {name}", correlations, 2, better="higher")
        if judge == "reward":
            row(judge, "identification accuracy", values("identification_accuracy"), 3, better="higher")
            row(judge, "information about w (nats)", values("information_nats"), 3, better="higher")
            row(judge, "KL to the start (nats)", values("kl_to_start"), 2)
            row(judge, "distinct responses", values("distinct_responses"), 3, percent=True)
            row(judge, "response length (tokens)", values("response_length"), 1)
        if ((after.get("fraction_of_attainable") or {}).get("judge")) == judge:
            for key, label in (("mip", "MIP"), ("hypervolume", "hypervolume")):
                share = values("fraction_of_attainable", key)
                row(judge, f"{label}, share of the attainable", share, 3, better="higher", percent=True)
        for name in (after.get("audit") or {}).get("extra") or {} if judge == "audit" else ():
            row(judge, name.replace("_", " "), values("audit", "extra", name), 3, percent=name.endswith("_rate"))
    return rows


def summarize_side(record: Record) -> Record:
    """One evaluation as it stands in summary.json: without covariances, clouds and examples."""
    side = {key: record.get(key) for key in SIDE_KEYS}
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
