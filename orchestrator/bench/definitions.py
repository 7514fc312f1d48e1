"""docs/metrics.md, which `python -m orchestrator.bench.definitions > docs/metrics.md` writes again."""

from collections.abc import Sequence

from learner.methods import METHODS
from orchestrator.bench.tables import as_markdown
from rewards.metrics import EVALUATION_METRICS, STEP_METRICS, Metric

PAGE = """# Metrics

What files, console, wandb, Ray's metrics, reports and comparisons tell of a run. A key that ends in `/<...>` stands for
one figure of each. A share is stored in [0, 1] and shown in percent; log-probabilities are those of whole responses.

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


def metrics_page() -> str:
    """The tables of `rewards.metrics` as markdown."""
    own = list(dict.fromkeys(metric for method in METHODS.values() for metric in method.metrics))
    return PAGE.format(steps=_table(STEP_METRICS), methods=_table(own), evaluations=_table(EVALUATION_METRICS))


def _table(metrics: Sequence[Metric]) -> str:
    rows = [[f"`{m.key}`", m.label, "share" if m.percent else m.unit, m.better, m.definition] for m in metrics]
    return as_markdown([["key", "label", "unit", "better", "definition"], *rows])


if __name__ == "__main__":
    print(metrics_page(), end="")
