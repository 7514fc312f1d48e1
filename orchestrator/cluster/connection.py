"""The Ray cluster of a run: joined when there is one, started locally otherwise, checked against the recipe."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.cards import Gpu, card_of, installed_gpus, unusable
from orchestrator.cluster.placement import Node, asking_keys, copies_that_fit, demands, obstacles, placement_table
from orchestrator.cluster.session import session_root, shorten
from orchestrator.errors import BadInput, ComponentLost
from orchestrator.estimate.memory import problems as memory_problems
from rewards.environment import one_line

if TYPE_CHECKING:
    from orchestrator.config import Recipe

NAMESPACE = "mi-epo"
HEAD = "node:__internal_head__"
"""The resource that only a head node has."""
RAYS_OWN_LABELS = "ray.io/"
FIRST_CONTACT_S = 5.0
LATER_CONTACT_S = 60.0
"""Longest wait for a head to answer: at the start, and after something was lost, when it may be coming back."""
ANSWER_S = 10.0
"""Longest wait for the head's answer once something listens; a head under load takes a second or two."""
CARDS_S = 60.0
"""Longest wait for the nodes to tell of their GPUs: each starts a process for it, and its driver may be asleep."""


class Joined(Protocol):
    """What `ray.init` tells of a cluster that it has joined."""

    @property
    def dashboard_url(self) -> str | None: ...


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
    return Node(
        name="this machine",
        cpus=recipe.cluster.num_cpus or float(os.cpu_count() or 1),
        gpus=float(gpus),
        cards=installed_gpus() if gpus else (),
    )


def live_nodes(*, ask_cards: bool = False) -> list[Node]:
    """Of the cluster this process has joined, the head first.

    Args:
        ask_cards: have each node with GPUs ask its driver for them; a node that does not answer tells of none.
    """
    import ray

    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: HEAD not in node["Resources"])
    cards = _ask_cards([node["NodeID"] for node in nodes if node["Resources"].get("GPU")]) if ask_cards else {}
    return [
        Node(
            name=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            labels={key: value for key, value in node["Labels"].items() if not key.startswith(RAYS_OWN_LABELS)},
            cards=cards.get(node["NodeID"], ()),
        )
        for node in nodes
    ]


def _ask_cards(node_ids: Sequence[str]) -> dict[str, tuple[Gpu, ...]]:
    """Node id -> its GPUs, of the nodes that answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(installed_gpus)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(): node_id
        for node_id in node_ids
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=CARDS_S) if asked else ([], [])
    return {asked[reference]: ray.get(reference) for reference in done}


def no_room(recipe: "Recipe", nodes: Sequence[Node], where: str) -> str | None:
    """What to say when the actors can have no place there: what is asked and what is there in one table."""
    asked = demands(recipe)
    found = list(obstacles(asked, nodes))
    if not found:
        return None
    return (
        f"{where} has no room for the recipe: {'; '.join(found)}; what asks for it: {', '.join(asking_keys(recipe))}"
        f"\n{placement_table(asked, nodes)}"
    )


def refusals(recipe: "Recipe", machine: Node) -> list[str]:
    """Why a local cluster on this machine cannot run the recipe: its GPUs, their memory, the room for its actors."""
    asks_gpus = any(demand.num_gpus for demand in demands(recipe))
    broken = unusable(machine.cards) if asks_gpus and machine.gpus else None
    card = card_of(machine.cards, recipe.cluster.card)
    room = no_room(recipe, [machine], "this machine")
    found = [f"this machine's GPUs: {broken}" if broken else None, *memory_problems(recipe, card), room, _no_session()]
    return [problem for problem in found if problem is not None]


def _no_session() -> str | None:
    try:
        session_root()
    except OSError as error:
        return str(error)
    return None


def check(recipe: "Recipe") -> None:
    """Nothing stays started.

    Raises:
        BadInput: there is no such cluster, it refuses this process, or it is too small.
    """
    if joins_existing(recipe) is not None:
        with connect(recipe):
            return
    if found := refusals(recipe, this_machine(recipe)):
        raise BadInput("\n".join(found))


def joins_existing(recipe: "Recipe") -> str | None:
    """Address of the cluster to join, or None for a local one."""
    address = recipe.cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


@contextlib.contextmanager
def connect(recipe: "Recipe", *, check: bool = True) -> "Iterator[Joined]":
    """Join or start the cluster; yields what Ray tells of it and leaves the cluster on the way out.

    `check`: refuse one that is too small at once. One that has just lost a node may be whole again later.

    `ray.init` gets no runtime_env: in a submitted job that belongs to the job, and a key given twice is a conflict.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default dedup holds lines back and drops repeats that differ only in numbers; actors here print little.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Zero-copy arrays are what weight buckets want; the warning about future accelerator variables is noise on CPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Else a thread that cleans up after `ray.shutdown` would start a cluster to do it in.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    address = joins_existing(recipe)
    if not address:
        # Symptom: a local cluster's control ports answer on every interface. Cause: on Linux Ray binds to the node's
        # address and turns 127.0.0.1 into it; this switch, meant for laptops, is the one way to loopback. It is read
        # when ray is imported. Delete when ray.init takes the address it is given.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default for a local cluster; said, it warns of nothing
    import ray

    def refused(error: Exception) -> BadInput | ComponentLost:
        where, why = repr(address or "local"), one_line(error)
        if not address and check:
            return BadInput(f"no local Ray cluster could be started: {why}")
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
            if not address:
                shorten(os.environ)
            context = ray.init(**wanted)
        except Exception as error:  # of the system's, of Ray's, and plain ones where a process of it did not start
            raise refused(error) from None
        if check and (crowded := no_room(recipe, live_nodes(), f"Ray cluster {address or '(local)'}")):
            raise BadInput(crowded)
        yield context
    finally:
        ray.shutdown()  # also of what `ray.init` left half done


def check_head(address: str, timeout_s: float) -> None:
    """Does the head answer, does it take this process's token, is its Ray ours? Raises ConnectionError with the reason.

    Symptom without it: `ray.init` asks a head that refuses it for twenty seconds and then names no reason; at a port of
    something else it goes on for minutes. Cause: it takes every failure for a head that is still starting. Delete when
    ray.init says at once why it was refused.

    Addresses that only `ray.init` can resolve ("auto", for which it also finds the token; "ray://...") pass.

    Args:
        timeout_s: longest wait for something to listen there.
    """
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    _wait_for_listener(host.strip("[]"), int(port), timeout_s)
    import ray

    different = other_ray(_told_by_head(address), ray.__version__)
    if different:
        raise ConnectionError(different)


def other_ray(told: Mapping[str, str], ray_version: str) -> str | None:
    """What is wrong when the head runs another Ray than this process; a head that tells no version is not refused.

    Python is left to `ray.init`, which compares it by a rule of its own.

    Example: other_ray({"ray_version": "2.59.0"}, "2.60.0")
    """
    theirs = told.get("ray_version", ray_version)
    if theirs == ray_version:
        return None
    return f"its head runs Ray {theirs}, this process Ray {ray_version}; a cluster has one version everywhere"


def refusal(code: str, auth_mode: str | None) -> str:
    """What is wrong when a call to the head fails with this gRPC code."""
    if code == "UNAUTHENTICATED":
        return (
            "its head wants a token, and this process has none or another; set RAY_AUTH_MODE=token (it is "
            f"{auth_mode or 'not set'}) and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the head"
        )
    return (
        f"what listens there does not answer as the head of a Ray cluster does ({code}); the port is the one given to "
        "`ray start --head --port` (6379 unless told otherwise), not the dashboard's"
    )


def _wait_for_listener(host: str, port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())):
                return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline - 1:
                raise ConnectionError(f"nothing answers there: {getattr(error, 'strerror', None) or error}") from None
        time.sleep(1)


def _told_by_head(address: str) -> dict[str, str]:
    """The versions that the head wrote down when it started, read as Ray's own processes read them."""
    import grpc
    import ray
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest  # type: ignore[attr-defined] # made when imported
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    asked = InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    with contextlib.closing(create_gcs_channel(address)) as channel:
        try:
            told = InternalKVGcsServiceStub(channel).InternalKVGet(asked, timeout=ANSWER_S, wait_for_ready=True)
        except ray.exceptions.AuthenticationError:  # there is no token to send
            code = "UNAUTHENTICATED"
        except grpc.RpcError as error:
            code = error.code().name
        else:
            return json.loads(told.value or b"{}")
    raise ConnectionError(refusal(code, os.environ.get("RAY_AUTH_MODE")))
