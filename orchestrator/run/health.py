"""Signs that training goes wrong although every part works: named in each step's metrics, acted on when they last."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.errors import RunFailed
from orchestrator.files import Record
from orchestrator.run.batching import ScoredBatch
from orchestrator.run.stages import Probed
from orchestrator.sections import HealthConfig

MEANING = {
    "constant_reward": "every response of a step got the same score",
    "identical_responses": "every response of a step is the same text",
    "cut_responses": "every response of a step was cut at the length limit",
    "exploding_logratio": "the mean log-ratio to the reference is beyond health.max_logratio",
    "narrow_tokens": "the entropy of the likeliest next tokens fell below health.min_top_entropy of its first value",
    "lost_mass": "the likeliest next tokens lost more than health.max_mass_lost of the probability",
}


def find_problems(
    scored: ScoredBatch, logratio_mean: float | None, config: HealthConfig, objectives: Sequence[str]
) -> list[str]:
    """Names of what is wrong with one step, `constant_reward/<objective>` for each objective concerned."""
    responses = [response for rollout in scored.rollouts for response in rollout.responses]
    problems = []
    for k, objective in enumerate(objectives):
        scores = scored.scores[..., k][np.isfinite(scored.scores[..., k])]
        if scores.size > 1 and np.ptp(scores) == 0:
            problems.append(f"constant_reward/{objective}")
    if len(responses) > 2 and len({response.text for response in responses}) == 1:
        problems.append("identical_responses")
    if all(response.finish_reason == "length" for response in responses):
        problems.append("cut_responses")
    if logratio_mean is not None and not abs(logratio_mean) <= config.max_logratio:
        problems.append("exploding_logratio")
    return problems


class LikelyTokens:
    """Signs that likelihoods are over-optimised (arXiv 2410.11677): what the likeliest tokens lost since the first.

    Args:
        records: the run's lines of metrics.jsonl so far.
    """

    def __init__(self, config: HealthConfig, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.config = config
        figures = [(record.get("top_entropy"), record.get("top_mass")) for record in records]
        self._probed = [(entropy, mass) for entropy, mass in figures if entropy is not None and mass is not None]

    def problems(self, probed: Probed | None) -> list[str]:
        """Names of what a step's probe shows; nothing of a step without one."""
        if probed is None:
            return []
        self._probed.append((probed.top_entropy, probed.top_mass))
        (first_entropy, first_mass), (entropy, mass) = self._probed[0], self._probed[-1]
        shown = {
            "narrow_tokens": entropy < self.config.min_top_entropy * first_entropy,
            "lost_mass": mass < first_mass - self.config.max_mass_lost,
        }
        return [name for name, shows in shown.items() if shows]


def nothing_learned(metrics: Sequence[Record], skipped: Collection[int]) -> str | None:
    """What to say of a run, by its lines of metrics.jsonl, that left the policy as it was; None: it did not.

    `skipped`: steps whose update was left out because its loss or gradient was not finite.
    """
    updates = [record for record in metrics if record["loss"] is not None]
    if any(record["grad_norm"] != 0 for record in updates):
        return None
    if updates:
        why = f"the gradient norm was 0 in every update ({len(updates)}): no response of a prompt was preferred"
    else:
        left_out = sum(record["step"] in skipped for record in metrics)
        why = (
            f"none of {len(metrics)} steps updated the policy ({left_out} left out for a loss or gradient that is not "
            f"finite, {len(metrics) - left_out} without a usable example)"
        )
    return f"nothing was learned: {why}; look at metrics.jsonl and samples.jsonl, no policy was saved"


PROBED = frozenset({"narrow_tokens", "lost_mass"})
"""Problems that only a step with a probe can show."""
PROBES = 2
"""In a row that must show such a problem before the rule follows."""


class Watch:
    """Counts steps in a row with the same problem, for the recipe's rule; of what probes show, probes in a row."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self._in_a_row: Counter[str] = Counter()

    def step(self, step: int, problems: Iterable[str], *, probed: bool = False) -> list[str]:
        """A line for a person about every problem that has lasted `health.patience` steps, or `PROBES` probes, by now.

        Args:
            probed: the step had a probe.

        Raises:
            RunFailed: there is one, and the rule is `stop`.
        """
        kept = {} if probed else {name: count for name, count in self._in_a_row.items() if name in PROBED}
        found = {name: self._in_a_row[name] + 1 for name in problems}
        self._in_a_row = Counter(kept | found)
        lines = []
        for name, count in found.items():
            limit, unit = (PROBES, "probes") if name in PROBED else (self.config.patience, "steps")
            if count == limit:
                lines.append(f"step {step}: {name} for {limit} {unit} in a row: {MEANING[name.split('/')[0]]}")
        if lines and self.config.rule == "stop":
            raise RunFailed(f"{lines[0]} (health.rule = stop)")
        return lines
