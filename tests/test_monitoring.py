"""The dashboard and the alerts hold together; that a live run tells every metric they ask for: test_jobs."""

import re

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from learner.methods import METHODS
from orchestrator.run.monitoring import COUNTERS, TOLD
from tests.monitoring import ALERTS, BOARD, MONITORING, RAYS_OWN, asked_metrics, metrics_in, queries

TAGS = {"run", "objective", "stage", "engine", "component", "ray_io_cluster"}


@pytest.mark.parametrize(("where", "expression"), list(queries()), ids=lambda value: value[:30])
def test_a_query_asks_for_metrics_and_selects_by_tags_that_are_there(where, expression):
    assert metrics_in(expression), where
    selected = re.findall(r"(\w+)=~?\"", expression)
    grouped = re.findall(r"(?:by|ignoring|on) \(([^)]*)\)", expression)
    named = {*selected, *(tag.strip() for tags in grouped for tag in tags.split(","))}
    assert named <= TAGS, f"{where}: {named - TAGS}"
    assert expression.count("(") == expression.count(")")


def test_what_the_driver_tells_of_a_step_and_an_evaluation_is_on_the_dashboard():
    told = {f"ray_{name}_total" if name in COUNTERS else f"ray_{name}" for name in TOLD}
    own = {metric.key for method in METHODS.values() for metric in method.metrics}
    step = {"learning_rate", "sync_bytes", "margin_mean", "logratio_negative_mean", *own}
    evaluation = {
        *("identification_accuracy", "steering_gap", "neighbour_overlap", "distinct_responses", "response_length"),
        *("kendall", "sparsity", "igd_plus", "fraction_of_attainable", "missing", "start_logprob"),
        *("step", "policy_version", "seconds"),
    }
    left_out = {f"ray_mi_epo_{key}" for key in step} | {f"ray_mi_epo_evaluation_{key}" for key in evaluation}
    assert told - asked_metrics() == left_out


def test_rays_own_metrics_are_ones_that_ray_tells():
    own = {name for name in asked_metrics() if not name.startswith(("ray_mi_epo_", "ray_vllm_"))}
    assert own == set(RAYS_OWN)
    assert own <= {f"ray_{name}" for name in METRICS_GAUGES}


def test_every_panel_has_a_place_of_its_own():
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in BOARD["panels"]]
    assert len(set(places)) == len(places) and len({p["id"] for p in BOARD["panels"]}) == len(BOARD["panels"])
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in BOARD["panels"])


def test_every_alert_says_what_it_means_and_where_to_look():
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 5
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert "$labels.run" in rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_prometheus_reads_the_rules_and_the_file_in_which_ray_lists_its_nodes():
    settings = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert [(MONITORING / name).exists() for name in settings["rule_files"]] == [True]
    [scraped] = [config["file_sd_configs"] for config in settings["scrape_configs"]]
    assert scraped == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]
