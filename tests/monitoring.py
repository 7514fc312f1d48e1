"""What deploy/monitoring asks Prometheus for."""

import json
import re
from collections.abc import Iterator

import yaml

from tests.whole_runs import REPOSITORY

MONITORING = REPOSITORY / "deploy" / "monitoring"
BOARD = json.loads((MONITORING / "grafana-mi-epo.json").read_text())
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
RAYS_OWN = ("ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_gpus_utilization")


def queries() -> Iterator[tuple[str, str]]:
    """(panel, variable or alert, PromQL)."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_(?!io_)\w+", expression))


def asked_metrics() -> set[str]:
    return {name for _, expression in queries() for name in metrics_in(expression)}
