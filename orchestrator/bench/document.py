"""Pages of markdown: a comparison with its figures, made from the results file alone; docs/metrics.md.

`python -m orchestrator.bench.document > docs/metrics.md` writes the second again. A comparison opens with what its
paired differences say, by one rule: a difference counts when its 95 % interval excludes 0.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learner.methods import METHODS
from orchestrator.bench import tables
from orchestrator.bench.cells import Results
from orchestrator.bench.tables import BASELINE, CONTROL, QUALITY, TRUTH, Table, as_markdown, paired_difference
from rewards.metrics import EVALUATION_METRICS, STEP_METRICS, Metric

READ = (*QUALITY[:3], CONTROL[3], TRUTH[0])
INFORMATION_TERM = (("mi-epo", "mo-odpo-per-objective"), ("mi-epo-scalarized", "mo-odpo"))
"""(with the term, the same method without it)"""
PAGE = """# Metrics

What files, console, wandb, Ray's metrics, reports and comparisons tell of a run. A key that ends in `/<...>` stands for
several: one of each objective, or of each stage. On the console `w.reward` is `weighted_reward` and `id.acc`
`identification_accuracy`. A share is stored in [0, 1] and shown in percent; log-probabilities are those of whole
responses.

## The main ones in formulas

An evaluation asks every held-out prompt under every vector w of a grid. r(w) [K] is the mean of the answers' scores
under w, each objective's normalised by the starting policy's mean and standard deviation on training prompts, measured
once and frozen; y are single answers.

```
MIP                 mean over w of  w . r(w)                                  does each user get what they asked for
hypervolume         volume of the union over w of the boxes from the reference point to r(w)
CRD                 mean over w of  det Cov(scores of the answers under w)    how much answers under one w scatter
Spearman of k       rank correlation over the grid of w_k and r_k(w)          1: more weight, more reward
steering gap        mean over w of  max over v of w . r(v)  -  w . r(w)       what another vector's answers would add
information about w mean over y of  log pi(y | x, own w) - log mean over v of pi(y | x, v)
KL to the start     mean over y of  log pi(y | x, w) - log pi_start(y | x, w)
```

The reference point is -3 in every objective unless `evaluate.reference_point` says otherwise.

## What training came to, in one line

Below the table before and after, and at the top of `report.html`: `steered` in green; in red `collapsed` (answers
repeat themselves), `judges over-optimised` (up by the reward models, down by the audit judge), `worse`, `nothing
learned` or `not steered`. What a collapse made better is not shown as a gain. `orchestrator/bench/verdict.py` has the
rules and their thresholds.

## Of an optimizer step

A line of `metrics.jsonl`; null is what the step did not measure. wandb has the same keys, Ray's metrics `mi_epo_<key>`
(for the times `mi_epo_stage_seconds`).

{steps}

Some methods report figures of their own:

{methods}

## Of an evaluation

A line of `evaluations.jsonl`, where figures of each objective are a list in the recipe's order, and a side of
`summary.json`, which adds the shares of the attainable. `audit` holds the same by the audit judge, and under `extra`
the recipe's own statistics; `prompt_intervals` are 95 % intervals over the choice of prompts; a comparison adds IGD+.
wandb has `evaluation/<key>` and `evaluation/audit/<key>`, Ray's metrics `mi_epo_evaluation_<key>` without the audit.

{evaluations}
"""


def write_document(comparisons: Sequence[Results], path: Path) -> Path:
    """Write `path` (markdown), a section for each comparison, and beside it the figures it shows. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stems: list[str] = []
    for results in comparisons:
        stem = f"{path.stem}-{results.recipe}"
        stems.append(stem if stem not in stems else f"{stem}-{len(stems) + 1}")
    parts = [part for results, stem in zip(comparisons, stems, strict=True) for part in _parts(results, path, stem)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _parts(results: Results, path: Path, stem: str) -> list[str]:
    from orchestrator.bench.figures.comparison import plot_control, plot_curves, plot_distributions, plot_fronts

    figures = {
        "fronts": ("Mean reward under each preference vector", plot_fronts),
        "control": ("Reward of each objective against its weight", plot_control),
        "distributions": ("Rewards under five vectors; shaded where neighbours overlap", plot_distributions),
        "curves": ("Metrics against generated tokens", plot_curves),
    }
    shown = []
    for name, (caption, plot) in figures.items():
        figure = path.with_name(f"{stem}-{name}.png")
        plot(figure, results)
        shown.append(f"![{caption}]({figure.name})")
    return [
        f"# {results.recipe}: {len(results.methods)} methods, {_seeds(results)}",
        _work_paragraph(results),
        *(["\n".join(f"- {sentence}" for sentence in sentences)] if (sentences := reading(results)) else []),
        *shown,
        *_section("After training, by the reward models", tables.quality_table(results, tables.QUALITY)),
        *_section("Difference to `mi-epo`, paired by seed", tables.difference_table(results, tables.QUALITY)),
        *_section("How far w is followed", tables.quality_table(results, tables.CONTROL)),
        *_section("By the audit judge, and the price", tables.quality_table(results, tables.TRUTH)),
        *_section(
            "At equal KL to the start, along each training curve", tables.matched_kl_table(results, tables.QUALITY[:3])
        ),
        *_section("Cost of a run", tables.cost_table(results)),
        *_sweep_section(results),
        *_section("How each method's setting was chosen", tables.tuning_table(results)),
    ]


def _section(title: str, table: Table) -> list[str]:
    return [f"## {title}", as_markdown(table)] if len(table) > 1 else []


def _sweep_section(results: Results) -> list[str]:
    sweep = results.sweep
    if sweep is None:
        return []
    method, own = results.methods[0], results.of(results.methods[0])[0]
    return _section(
        f"`{method}` with other values of {sweep.key} ({own.knob} {own.value:g})",
        tables.sweep_table(results, tables.SWEPT),
    )


def _seeds(results: Results) -> str:
    count = len(results.seeds)
    seeds = f"{count} seeds" if count > 1 else "one seed"
    return seeds if count >= tables.LEAST_SEEDS else f"{seeds} (no intervals)"


def _work_paragraph(results: Results) -> str:
    tuned = (
        "Each method stands at its own best value of the setting that decides how far it drifts, chosen under seed "
        f"{results.tune_seed}, which is in no other table, by the MIP of the audit judge (of the reward models where "
        "there is none)."
        if results.tuning
        else "Every setting is the recipe's."
    )
    return (
        f"Objectives {', '.join(results.objectives)}; {results.steps} updates; seeds "
        f"{', '.join(map(str, results.seeds))}. Under one seed every method has the same starting policy, reward "
        f"models, prompts and number of sampled responses. {tuned} ± is the half width of the 95 % interval of the "
        "mean over seeds (Student's t). ↑ higher is better, ↓ lower is better."
    )


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


def metrics_page() -> str:
    """The tables of `rewards.metrics` as markdown."""
    own = list(dict.fromkeys(metric for method in METHODS.values() for metric in method.metrics))
    return PAGE.format(
        steps=_metric_table(STEP_METRICS), methods=_metric_table(own), evaluations=_metric_table(EVALUATION_METRICS)
    )


def _metric_table(metrics: Sequence[Metric]) -> str:
    rows = [[f"`{m.key}`", m.label, "share" if m.percent else m.unit, m.better, m.definition] for m in metrics]
    return as_markdown([["key", "label", "unit", "better", "definition"], *rows])


if __name__ == "__main__":
    print(metrics_page(), end="")
