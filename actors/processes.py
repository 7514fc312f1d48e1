"""Actors as processes on a cluster: a group reserved as a whole, started side by side, waited for, found dead, ended.

The learner, which knows nothing of the engines, uses this file as well, and no other of this room.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from actors.config import Placement
from actors.types import ActorFailedError, EngineRestartedError
from rewards.environment import one_line

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

START_RETRIES = 10
"""Of a first load whose process dies; asking about once a second while Ray starts it again takes several of them."""
NO_RESOURCES = {"CPU": 0.001}  # Ray refuses a bundle that asks for nothing
_PLACEMENT_OF: dict[ActorHandle, PlacementGroup] = {}
"""Actor handle -> the placement group it sits in, so that ``stop_actors`` gives the resources back."""


class Asks(Protocol):
    """What one actor asks of a cluster; a recipe's sections say it under these names."""

    @property
    def num_cpus(self) -> float: ...
    @property
    def num_gpus(self) -> float: ...
    @property
    def node_labels(self) -> Mapping[str, str]:
        """Only on a node that carries all of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSpec:
    """One actor to start.

    Example:
        ActorSpec(name="run-1/rollout-0", num_cpus=1, num_gpus=0, env={"OMP_NUM_THREADS": "1"}, kwargs={"engine": 0})
    """

    name: str
    num_cpus: float
    num_gpus: float
    env: Mapping[str, str]
    """Environment of its process, set before anything is imported there."""
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Only on a node that carries all of them."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Constructor arguments."""


def start_actors(
    actor_class: type,
    specs: Sequence[ActorSpec],
    *,
    group: str,
    reserved: PlacementGroup | None = None,
    placement: Placement = "pack",
    timeout_s: float,
    error: type[Exception],
) -> list[ActorHandle]:
    """Start one actor per spec and return their handles once every ``ready()`` has answered.

    Resources are granted to all of them together or to none, so no run holds half of its actors for ever. An actor
    whose process dies is started again by Ray, on another node if need be, with nothing loaded: see `call_ready`.

    Args:
        actor_class: a plain class with a ``ready()`` method; loading belongs there, so that its error is the answer.
        group: the placement group's name in the dashboard.
        reserved: the caller's own placement group, with a bundle for each; None: one is made, and goes with the actors.
        placement: on as few nodes as possible, or on as many.
        timeout_s: longest wait for resources, and again for the actors.
        error: raised, with one line that names the actor, for whatever goes wrong; nothing is left running then.
    """
    import ray
    from ray.util import remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    own = None
    if reserved is None:
        own = reserved = reserve(specs, group=group, placement=placement, timeout_s=timeout_s, error=error)
    remote_class: Any = ray.remote(actor_class)
    handles: list[ActorHandle] = []
    try:
        for index, spec in enumerate(specs):
            options = remote_class.options(
                name=spec.name,
                num_cpus=spec.num_cpus,
                num_gpus=spec.num_gpus,
                max_restarts=-1,
                runtime_env={"env_vars": dict(spec.env)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=index),
            )
            try:
                handles.append(options.remote(**spec.kwargs))
            except ValueError as failure:  # the name is taken by an actor of another run
                raise error(f"{spec.name}: {one_line(failure)}") from None
            if own is not None:
                _PLACEMENT_OF[handles[-1]] = own
        _wait_ready(handles, specs, timeout_s=timeout_s, error=error)
    except BaseException:
        stop_actors(handles)
        if own is not None:
            remove_placement_group(own)
        raise
    return handles


def call_ready(handle: ActorHandle, *, retries: int = -1) -> ObjectRef:
    """Reference to the answer of `ready()`, which loads what the actor holds, however often Ray has to start it.

    The caller sets the deadline: what dies each time it loads is tried until then, or `retries` times.
    """
    return handle.ready.options(max_task_retries=retries).remote()


def stop_actors(handles: Sequence[ActorHandle]) -> None:
    """End the actors and give their resources back."""
    import ray
    from ray.util import remove_placement_group

    placements = {_PLACEMENT_OF.pop(handle) for handle in handles if handle in _PLACEMENT_OF}
    for handle in handles:
        ray.kill(handle)
    for placement in placements:
        remove_placement_group(placement)


def reserve(
    asked: Sequence[Asks], *, group: str, placement: Placement = "pack", timeout_s: float, error: type[Exception]
) -> PlacementGroup:
    """A Ray placement group with a bundle for each actor that asks: all of them, or `error` after `timeout_s`."""
    import ray
    from ray.util import placement_group, remove_placement_group

    wanted = [{"CPU": actor.num_cpus, "GPU": actor.num_gpus} for actor in asked]
    bundles = [{name: amount for name, amount in bundle.items() if amount} or NO_RESOURCES for bundle in wanted]
    labels = [dict(actor.node_labels) for actor in asked] if any(actor.node_labels for actor in asked) else None
    reserved = placement_group(bundles, strategy=placement.upper(), name=group, bundle_label_selector=labels)
    if not reserved.wait(timeout_s):
        remove_placement_group(reserved)
        totals = {name: sum(bundle[name] for bundle in wanted) for name in ("CPU", "GPU")}
        raise error(
            f"{group}: no room for {len(asked)} actor{'s' * (len(asked) > 1)} ({_amounts(totals)}) within "
            f"{timeout_s:g} s; the cluster has {_amounts(ray.cluster_resources())}, of which "
            f"{_amounts(ray.available_resources())} are free"
        )
    return reserved


def network_environment() -> dict[str, str]:
    """What gloo and NCCL read of an actor's environment to meet others over the interface with its Ray address.

    Each chooses by itself otherwise: host names often resolve to the loopback, which gloo would use, and NCCL takes the
    first interface that looks right, a container bridge say. Nothing where no interface has the address.
    """
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


def deaths() -> tuple[type[Exception], ...]:
    """What a call raises when the process that was to answer it is gone."""
    import ray

    return ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError


def losses() -> tuple[type[Exception], ...]:
    """The same, and what it raises when its actor is of no further use, or was started again since the last call."""
    return *deaths(), ActorFailedError, EngineRestartedError


def leaves_process(loss: BaseException) -> bool:
    """Whether the process is still there after this loss, and must be ended before the actor can come back."""
    return isinstance(loss, ActorFailedError)


def _wait_ready(
    handles: Sequence[ActorHandle], specs: Sequence[ActorSpec], *, timeout_s: float, error: type[Exception]
) -> None:
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    deadline = time.monotonic() + timeout_s
    asked = [call_ready(handle, retries=START_RETRIES) for handle in handles]
    name_of = {reference: spec.name for reference, spec in zip(asked, specs, strict=True)}
    pending = list(name_of)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise error(f"{', '.join(name_of[ref] for ref in pending)}: not ready within {timeout_s:g} s")
        try:
            ray.get(done[0])
        except RayTaskError as failure:
            raise error(f"{name_of[done[0]]}: {one_line(failure.cause or failure)}") from None
        except RayActorError as failure:
            raise error(f"{name_of[done[0]]}: its process died while starting ({one_line(failure)})") from None


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return " and ".join(f"{amount:g} {name}s" for name, amount in shown.items() if amount or name == "CPU")
