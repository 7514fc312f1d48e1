"""A budget of KL: beta_c follows it from step to step, and a run that goes on goes on with the anchor it had."""

import dataclasses
import math

import pytest
from learner_ranks import method
from test_methods import evaluated, group_of

from learner.methods import METHODS, make_method
from learner.methods.method import AnchoredSection
from learner.types import StepReport
from orchestrator.run.budget import LARGEST_ANCHOR, KlBudget, next_anchor

ANCHORED = [name for name, each in METHODS.items() if issubclass(each.Config, AnchoredSection)]


def report(kl: float, **metrics: float) -> StepReport:
    return StepReport(step=0, metrics={"logratio_mean": kl, **metrics}, learner_tokens=1)


@pytest.mark.parametrize(
    ("anchor", "kl", "expected"),
    [
        (2.0, 10.0, 2.0),  # on the budget
        (2.0, 11.0, 2.0 * 1.05),
        (2.0, 1000.0, 2.0 * 1.1),  # a step answers to a fifth at most
        (2.0, 0.0, 2.0 * 0.9),
        (1.0, 0.0, 1.0),  # never under beta_c itself
        (LARGEST_ANCHOR, 1e9, LARGEST_ANCHOR),
    ],
)
def test_the_anchor_is_raised_beyond_the_budget_and_lowered_below_it(anchor, kl, expected):
    assert next_anchor(anchor, kl, 10.0) == pytest.approx(expected)


def test_without_a_budget_nothing_is_anchored_more():
    budget = KlBudget(method("mi-epo"))
    budget.observe(report(1e9))
    assert budget.anchor == 1.0
    assert KlBudget(method("grpo")).anchor == 1.0


def test_a_run_that_goes_on_has_the_anchor_of_one_that_never_stopped():
    section, seen = method("mi-epo", kl_budget=5.0), [3.0, 7.0, 9.0, 20.0, 4.0]
    whole, records = KlBudget(section), []
    for kl in seen:
        records.append({"logratio_mean": kl, "anchor": whole.anchor})
        whole.observe(report(kl, anchor=whole.anchor))
    assert whole.anchor > 1
    for cut in range(len(seen) + 1):
        again = KlBudget(section, records[:cut])
        for kl in seen[cut:]:
            again.observe(report(kl, anchor=again.anchor))
        assert again.anchor == whole.anchor


def test_a_step_without_an_update_changes_nothing():
    budget = KlBudget(method("mi-epo", kl_budget=1.0), [{"logratio_mean": 9.0, "anchor": 1.0}, {"logratio_mean": None}])
    assert budget.anchor == pytest.approx(1.1)


@pytest.mark.parametrize("name", ANCHORED)
def test_an_anchor_is_a_larger_beta_c(name):
    group = group_of([[1, 0.2], [0.1, 0.9], [0.0, 0.1]], [0.3, 0.7])
    losses = []
    for beta_c, anchor in ((0.1, 3.0), (0.3, 1.0), (0.1, 1.0)):
        made = make_method(method(name, beta_c=beta_c))
        at = dataclasses.replace(evaluated(made.batch([group])), anchor=anchor)
        losses.append(made.loss(at).loss.item())
    assert math.isclose(losses[0], losses[1], rel_tol=1e-6) and losses[0] != losses[2]
