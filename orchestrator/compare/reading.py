"""What the paired differences say, in sentences, by one rule: a difference counts when its 95 % interval excludes 0."""

import math

from orchestrator.compare.results import Results
from orchestrator.compare.statistics import paired_difference
from orchestrator.compare.tables import BASELINE, QUALITY, Metric

READ = tuple(metric for metric in QUALITY if metric.label in ("MIP", "hypervolume", "CRD"))


def reading(results: Results) -> list[str]:
    """One sentence for each method but MI-EPO; what was measured once is told to prove nothing."""
    if BASELINE not in results.methods:
        return []
    if len(results.seeds) < 2:
        return ["One seed proves nothing: the spread between seeds is not known."]
    return [_sentence(results, method) for method in results.methods if method != BASELINE]


def _sentence(results: Results, method: str) -> str:
    better, worse, open_ = [], [], []
    for metric in READ:
        difference = _difference(results, method, metric)
        if difference is None:
            open_.append(metric.label)
        elif (difference > 0) == (metric.better == "higher"):
            better.append(metric.label)
        else:
            worse.append(metric.label)
    parts = [
        f"{verb} {' and '.join(labels)}"
        for verb, labels in (("better than `mi-epo` in", better), ("worse in", worse), ("not told apart in", open_))
        if labels
    ]
    return f"`{method}`: {', '.join(parts)}."


def _difference(results: Results, method: str, metric: Metric) -> float | None:
    """Mean paired difference, or None when its interval holds 0."""
    of, baseline = ([metric.of(cell.after) for cell in results.of(name)] for name in (method, BASELINE))
    found = paired_difference(of, baseline)
    return found.mean if math.isfinite(found.half_width) and abs(found.mean) > found.half_width else None
