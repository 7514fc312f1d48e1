"""What training came to, in one line: a pure function of the evaluations before and after."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rewards.metrics import EVALUATION_METRICS, describe

Side = Mapping[str, Any]
"""A side of summary.json, or a line of evaluations.jsonl."""
Name = Literal["steered", "improved", "not steered", "nothing learned", "worse", "judges over-optimised", "collapsed"]
GOOD = ("steered", "improved")
SAMPLES = 4
"""Answers to one prompt under one vector in records that do not tell: the default of `evaluate.samples`."""
NEW_TEXT = 1 / 3
"""Share of the further answers to the same prompt under the same vector that are new texts, below which answers repeat
themselves: of 4 answers less than 2 texts. Policies that were trained well stand above 0.99 (docs/results.md)."""
VARIANCE_LEFT = 0.1
"""Share of the start's variance of rewards, per objective (the K-th root of CRD's share), below which a policy that
does not follow w says much the same to everything. The strongest information term that was tried left 0.3."""
FOLLOWED = 0.5
"""Mean Spearman over the objectives from which rewards follow w."""
SPEARMAN_MARGIN = 0.1
"""Least rise of it that counts."""
MIP_MARGIN = 0.05
"""Least change of MIP that counts, in standard deviations of the start's rewards; where the prompts' own intervals are
wider, they decide."""
AUDIT_MARGIN = 0.02
"""Least fall of the audit judge's MIP that counts against a rise by the reward models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Example: Verdict(name="collapsed", why="distinct responses 100.0% → 26.0%, Spearman 0.97 → 0.30")"""

    name: Name
    why: str

    @property
    def good(self) -> bool:
        return self.name in GOOD

    @property
    def line(self) -> str:
        return f"{self.name}: {self.why}"

    def credits(self, judge: str) -> bool:
        """Whether a better figure by this judge is a gain.

        One text for everything has no dispersion at all, and what a judge takes for good scores well by that judge.
        """
        return self.name != "collapsed" and (self.name != "judges over-optimised" or judge == "audit")


def judge_training(before: Side | None, after: Side) -> Verdict | None:
    """The first of these that holds; None where nothing can be said (one objective and one evaluation).

    collapsed               answers repeat themselves (`NEW_TEXT`), or hardly vary (`VARIANCE_LEFT`) and follow no w
    judges over-optimised   MIP rose by the reward models and fell by the audit judge
    worse                   MIP fell
    nothing learned         neither MIP nor Spearman rose
    not steered             rewards do not follow w (`FOLLOWED`)
    steered                 they do; of one objective, where w has no choice: improved

    Without `before` only collapsed, not steered and steered can be told.
    """

    def verdict(name: Name, *told: str) -> Verdict:
        return Verdict(name=name, why=", ".join(filter(None, (_tell(before, after, key) for key in told))))

    followed = _followed(after)
    if _collapsed(before, after):
        return verdict("collapsed", "distinct_responses", "crd", "spearman")
    if before is not None and before["mip"] is not None and after["mip"] is not None:
        gain, margin = after["mip"] - before["mip"], _margin(before, after)
        audit, audited = ((side.get("audit") or {}).get("mip") for side in (before, after))
        if gain > margin and audit is not None and audited is not None and audited < audit - AUDIT_MARGIN:
            return verdict("judges over-optimised", "mip", "audit/mip")
        if gain < -margin:
            return verdict("worse", "mip", "spearman")
        if gain <= margin and (followed is None or followed - (_followed(before) or 0.0) <= SPEARMAN_MARGIN):
            return verdict("nothing learned", "mip", "spearman")
        if followed is None:
            return verdict("improved", "mip")
    if followed is None:
        return None
    return verdict("steered" if followed >= FOLLOWED else "not steered", "mip", "spearman")


def _collapsed(before: Side | None, after: Side) -> bool:
    distinct, samples = after.get("distinct_responses"), after.get("samples", SAMPLES)
    if distinct is not None and samples > 1 and (distinct * samples - 1) / (samples - 1) < NEW_TEXT:
        return True
    dispersion, left = (before or {}).get("crd"), after.get("crd")
    if dispersion is None or left is None or (_followed(after) or 0.0) >= FOLLOWED:
        return False
    return left < dispersion * VARIANCE_LEFT ** len(after["spearman"])


def _followed(side: Side) -> float | None:
    """Mean Spearman; a reward that is the same under every vector has none and follows none. None of one objective."""
    ranks = side["spearman"]
    return sum(rank or 0.0 for rank in ranks) / len(ranks) if len(ranks) > 1 else None


def _margin(before: Side, after: Side) -> float:
    """Half the width of a 95 % interval of the change of MIP over prompts, at least `MIP_MARGIN`."""
    intervals = [(side.get("prompt_intervals") or {}).get("mip") or (0.0, 0.0) for side in (before, after)]
    widths = [0.0 if None in ends else ends[1] - ends[0] for ends in intervals]
    return max(MIP_MARGIN, math.hypot(*widths) / 2)


def _tell(before: Side | None, after: Side, key: str) -> str:
    """`MIP 0.262 → 0.897`; empty where it was not measured."""
    metric = describe(key, table=EVALUATION_METRICS)
    values = [metric.show(metric.of(side)) for side in (before, after) if side is not None]
    return f"{metric.label} {' → '.join(values)}" if values[-1] != "-" else ""
