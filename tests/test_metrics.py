"""The table of metrics: it knows every figure that is written, and what is told of each is the same everywhere."""

import math
import re

import pytest
import torch

from learner.losses import mi_epo_loss
from learner.methods import METHODS
from orchestrator.bench.document import metrics_page
from rewards.metrics import EVALUATION_METRICS, STEP_METRICS, Metric, describe, evaluation_figures
from tests.test_telemetry import CONTRACT_KEYS
from tests.whole_runs import REPOSITORY

STEP_FAMILIES = {metric.family for metric in STEP_METRICS}
FRONT = {"mip": 0.9, "spearman": [0.5, None], "points": [[1.0, 2.0]]}
RECORD = {
    **FRONT,
    "step": 3,
    "kl_to_start": None,
    "prompt_intervals": {"mip": [0.1, 0.2]},
    "audit": {**FRONT, "mip": 0.4, "extra": {"ungrammatical_rate": 0.02}},
}


def evaluation_metric(key):
    return describe(key, table=EVALUATION_METRICS)


def test_every_key_of_the_contract_and_every_figure_of_a_loss_has_an_entry():
    ones = torch.ones(3, 2)
    update = mi_epo_loss(ones, ones[None], ones[:, 0], ones[:, 0], beta_c=0.1, beta_w=0.1).metrics
    learned = {*update, "grad_norm", "learning_rate"}
    assert {key.partition("/")[0] for key in CONTRACT_KEYS | learned} <= STEP_FAMILIES


OWN_METRICS = tuple(dict.fromkeys(metric for method in METHODS.values() for metric in method.metrics))


def test_a_method_s_own_figures_are_not_the_common_ones():
    assert not {metric.family for metric in OWN_METRICS} & STEP_FAMILIES
    assert {"kl", "clipped_share", "logprob_mean"} <= {metric.key for metric in OWN_METRICS}


@pytest.mark.parametrize("table", [STEP_METRICS, EVALUATION_METRICS, OWN_METRICS])
def test_an_entry_stands_once_and_is_defined_in_a_sentence_that_a_table_can_hold(table):
    assert len({metric.family for metric in table}) == len(table)
    for metric in table:
        assert metric.label and metric.definition[0].isupper() and metric.definition.endswith("."), metric.key
        assert "|" not in metric.definition and not re.search(r"\. [A-Z]", metric.definition), metric.key


def test_a_key_of_a_family_or_of_the_audit_judge_is_described_by_its_entry():
    spearman = evaluation_metric("audit/spearman/code_quality")
    assert (spearman.label, spearman.better, spearman.digits) == ("audit Spearman, code_quality", "higher", 2)
    assert evaluation_metric("spearman").tag == "objective"
    assert evaluation_metric("fraction_of_attainable/mip").label == "share of the attainable, MIP"
    assert describe("seconds/learn").name == "time, learn (seconds)"


def test_a_method_describes_its_own_figures_and_one_that_nobody_describes_is_called_by_its_key():
    own = Metric(key="clipped_share", label="clipped tokens", definition="Share of them.", percent=True)
    assert describe("clipped_share", (own,)) is own
    unknown = describe("clipped_share")
    assert (unknown.key, unknown.label, unknown.better, unknown.definition) == (
        "clipped_share",
        "clipped share",
        "",
        "",
    )
    assert describe("refused_rate").show(0.25) == "25.0%"


def test_values_and_changes_are_told_by_the_entry():
    mip, volume, distinct = map(evaluation_metric, ("mip", "hypervolume", "distinct_responses"))
    assert (mip.heading, evaluation_metric("kl_to_start").heading) == ("MIP ↑", "KL to the start (nats)")
    assert (mip.show(0.5), mip.show(0.5, "+"), mip.change(0.5, 0.25)) == ("0.500", "+0.500", "-0.250")
    assert (volume.change(10.0, 13.4), volume.change(0.0, 1.0)) == ("+34%", "")
    assert (distinct.show(0.5), distinct.change(0.5, 0.515)) == ("50.0%", "+1.5 pts")
    assert {mip.show(value) for value in (None, math.nan, math.inf)} == {"-"} and mip.change(None, 1.0) == ""


def test_an_evaluation_gives_every_number_of_both_judges_and_nothing_else():
    assert evaluation_figures(RECORD, ("humor", "brevity")) == {
        "mip": 0.9,
        "spearman/humor": 0.5,
        "step": 3,
        "audit/mip": 0.4,
        "audit/spearman/humor": 0.5,
        "audit/ungrammatical_rate": 0.02,
    }


def test_a_figure_of_each_objective_is_compared_by_its_mean_over_those_that_have_one():
    assert evaluation_metric("spearman").of(RECORD) == evaluation_metric("audit/spearman").of(RECORD) == 0.5
    assert evaluation_metric("audit/mip").of(RECORD) == 0.4
    assert evaluation_metric("spearman").of({"spearman": [None]}) is None
    assert evaluation_metric("audit/mip").of({"audit": None}) is None


def test_the_page_of_definitions_is_the_table():
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_page(), "python -m orchestrator.bench.document > docs/metrics.md"
