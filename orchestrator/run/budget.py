"""A budget of KL to the start: how much more strongly the next update is anchored, from what the last one showed."""

from collections.abc import Mapping, Sequence
from typing import Any

from learner.methods.method import AnchoredSection, MethodSection
from learner.types import StepReport

LARGEST_ERROR = 0.2
"""Of the KL against its budget that one step answers to, as a share (arXiv 1909.08593)."""
GAIN = 0.5
LARGEST_ANCHOR = 100.0


def next_anchor(anchor: float, kl: float, budget: float) -> float:
    """The factor on beta_c of the next update: raised beyond the budget, lowered below it, in [1, LARGEST_ANCHOR].

    Args:
        anchor: of the update that was made.
        kl: what it saw: mean log pi - log pi_ref of its responses, nats.
        budget: nats, > 0.
    """
    error = max(-LARGEST_ERROR, min(LARGEST_ERROR, kl / budget - 1))
    return min(LARGEST_ANCHOR, max(1.0, anchor * (1 + GAIN * error)))


class KlBudget:
    """Keeps the anchor from update to update; without `kl_budget` in the section it stays 1.

    Args:
        records: the run's lines of metrics.jsonl so far, when it goes on.
    """

    def __init__(self, method: MethodSection, records: Sequence[Mapping[str, Any]] = ()) -> None:
        self.budget = method.kl_budget if isinstance(method, AnchoredSection) else None
        self.anchor = 1.0
        for record in records:
            self._see(record)

    def observe(self, report: StepReport) -> None:
        """What an update showed."""
        self._see(report.metrics)

    def _see(self, metrics: Mapping[str, Any]) -> None:
        kl = metrics.get("logratio_mean")
        if self.budget is not None and kl is not None:
            self.anchor = next_anchor(metrics.get("anchor") or self.anchor, kl, self.budget)
