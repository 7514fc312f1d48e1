"""The Ray cluster of a run: joined when there is one, started locally otherwise, checked against the recipe."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.contact import check_head
from orchestrator.cluster.placement import Node, copies_that_fit, demands, obstacles, placement_table
from orchestrator.errors import BadInput, ComponentLost
from rewards.errors import one_line

if TYPE_CHECKING:
    from orchestrator.config import Recipe

NAMESPACE = "mi-epo"
HEAD = "node:__internal_head__"
"""The resource that only a head node has."""
RAYS_OWN_LABELS = "ray.io/"
FIRST_CONTACT_S = 5.0
LATER_CONTACT_S = 60.0
"""Longest wait for a head to answer: at the start, and after something was lost, when it may be coming back."""


def runs_that_fit(recipe: "Recipe") -> int:
    """Runs of the recipe that the cluster they join has room for now, at least 1; 1 where each starts its own."""
    if joins_existing(recipe) is None:
        return 1
    import ray

    with connect(recipe):
        free = ray.available_resources()
    return max(1, copies_that_fit(demands(recipe), cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0)))


def this_machine(recipe: "Recipe") -> Node:
    """The one node of the local cluster that `connect` would start."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # A sandbox may show either without the other.
    devices = max(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))), len(list(Path("/dev").glob("nvidia[0-9]*"))))
    gpus = len([d for d in visible.split(",") if d.strip()]) if visible is not None and devices else devices
    return Node(name="this machine", cpus=recipe.cluster.num_cpus or float(os.cpu_count() or 1), gpus=float(gpus))


def live_nodes() -> list[Node]:
    """Of the cluster this process has joined, the head first."""
    import ray

    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: HEAD not in node["Resources"])
    return [
        Node(
            name=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            labels={key: value for key, value in node["Labels"].items() if not key.startswith(RAYS_OWN_LABELS)},
        )
        for node in nodes
    ]


def check_fits(recipe: "Recipe", nodes: Sequence[Node], where: str) -> None:
    """Raises BadInput when the actors can have no place there, with what is asked and what is there in one table."""
    asked = demands(recipe)
    found = list(obstacles(asked, nodes))
    if found:
        raise BadInput(f"{where} has no room for the recipe: {'; '.join(found)}\n{placement_table(asked, nodes)}")


def check(recipe: "Recipe") -> list[Node]:
    """The nodes that the recipe's actors would get; nothing stays started.

    Raises:
        BadInput: there is no such cluster, it refuses this process, or it is too small.
    """
    if joins_existing(recipe) is None:
        nodes = [this_machine(recipe)]
        check_fits(recipe, nodes, "this machine")
        return nodes
    with connect(recipe):
        return live_nodes()


def joins_existing(recipe: "Recipe") -> str | None:
    """Address of the cluster to join, or None for a local one."""
    address = recipe.cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


@contextlib.contextmanager
def connect(recipe: "Recipe", *, check: bool = True) -> Iterator[Any]:
    """Join or start the cluster; yields the Ray context and leaves the cluster on the way out.

    `check`: refuse one that is too small at once. One that has just lost a node may be whole again later.

    `ray.init` gets no runtime_env: in a submitted job that belongs to the job, and a key given twice is a conflict.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default dedup holds lines back and drops repeats that differ only in numbers; actors here print little.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Zero-copy arrays are what weight buckets want; the warning about future accelerator variables is noise on CPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = joins_existing(recipe)
    if not address:
        # Symptom: a local cluster's control ports answer on every interface. Cause: on Linux Ray binds to the node's
        # address and turns 127.0.0.1 into it; this switch, meant for laptops, is the one way to loopback. It is read
        # when ray is imported. Delete when ray.init takes the address it is given.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    def refused(error: Exception) -> BadInput | ComponentLost:
        where, why = repr(address or "local"), one_line(error)
        if check:
            return BadInput(f"cluster.address: no Ray cluster could be joined at {where}: {why}")
        return ComponentLost(f"the Ray cluster at {where} does not answer: {why}")

    wanted: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": "warning", "address": address or "local"}
    if address:
        try:
            check_head(address, FIRST_CONTACT_S if check else LATER_CONTACT_S)
        except ConnectionError as error:
            raise refused(error) from None
    else:
        wanted |= {
            "num_cpus": recipe.cluster.num_cpus,
            "object_store_memory": recipe.cluster.object_store_bytes,
            "include_dashboard": recipe.cluster.dashboard,
            "dashboard_host": "127.0.0.1",
        }
    try:
        try:
            context = ray.init(**wanted)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise refused(error) from None
        if check:
            check_fits(recipe, live_nodes(), f"Ray cluster {address or '(local)'}")
        yield context
    finally:
        ray.shutdown()  # also of what `ray.init` left half done
