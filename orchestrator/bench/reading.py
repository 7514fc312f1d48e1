"""What the paired differences say, in sentences, by one rule: a difference counts when its 95 % interval excludes 0."""

import math

import numpy as np

from orchestrator.bench.results import Results
from orchestrator.bench.statistics import paired_difference
from orchestrator.bench.tables import BASELINE, CONTROL, QUALITY, TRUTH

READ = (*QUALITY[:3], CONTROL[3], TRUTH[0])
INFORMATION_TERM = (("mi-epo", "mo-odpo-per-objective"), ("mi-epo-scalarized", "mo-odpo"))
"""(with the term, the same method without it)"""


def reading(results: Results) -> list[str]:
    """What the information term changes, then one sentence for each other method and each value of the sweep.

    What was measured once is told to prove nothing.
    """
    if len(results.seeds) < 2:
        return ["One seed proves nothing: the spread between seeds is not known."]
    sentences = [
        f"The information term: `{method}` against `{without}` is {_verdict(results, method, without)}, "
        f"for {_token_ratio(results, method, without):.1f} times the learner tokens."
        for method, without in INFORMATION_TERM
        if {method, without} <= set(results.methods)
    ]
    if BASELINE in results.methods:
        sentences += [
            f"`{method}` against `{BASELINE}` is {_verdict(results, method, BASELINE)}."
            for method in results.methods
            if method != BASELINE and (BASELINE, method) not in INFORMATION_TERM
        ]
    if results.sweep is not None:
        own = results.methods[0]
        sentences += [
            f"`{own}` with {results.sweep.key} = {value:g} against its own value is {_verdict(results, method, own)}."
            for value, method in zip(results.sweep.values, results.sweep.methods, strict=True)
            if method != own
        ]
    return sentences


def _verdict(results: Results, method: str, baseline: str) -> str:
    better, worse, open_ = [], [], []
    for metric in READ:
        of, against = ([metric.of(cell.after) for cell in results.of(name)] for name in (method, baseline))
        found = paired_difference(of, against)
        if not found.count:
            continue
        if not math.isfinite(found.half_width) or abs(found.mean) <= found.half_width:
            open_.append(metric.label)
        elif (found.mean > 0) == (metric.better == "higher"):
            better.append(metric.label)
        else:
            worse.append(metric.label)
    kinds = (("better in", better), ("worse in", worse), ("not told apart in", open_))
    return ", ".join(f"{verb} {_enumerate(labels)}" for verb, labels in kinds if labels)


def _enumerate(labels: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))


def _token_ratio(results: Results, method: str, baseline: str) -> float:
    tokens, without = (np.mean([cell.learner_tokens for cell in results.of(name)]) for name in (method, baseline))
    return float(tokens / without)
