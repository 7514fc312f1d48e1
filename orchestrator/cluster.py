"""The Ray cluster of a run: joined when there is one, started locally otherwise, checked against the recipe."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import BadInput, ComponentLost

if TYPE_CHECKING:
    from orchestrator.config import Recipe

NAMESPACE = "mi-epo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorDemand:
    """One kind of actor of a run. Example: ActorDemand(role="rollout", count=1, num_cpus=1.0, num_gpus=0.0)"""

    role: str
    count: int
    num_cpus: float  # per actor
    num_gpus: float  # per actor


def demands(recipe: "Recipe") -> list[ActorDemand]:
    """Every actor of a training run, with what each asks of the cluster."""
    rollout, learner = recipe.rollout, recipe.learner
    return [
        ActorDemand(
            role="rollout",
            count=rollout.engines,
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus * rollout.tensor_parallel_size,
        ),
        ActorDemand(role="learner", count=learner.ranks, num_cpus=learner.num_cpus, num_gpus=learner.num_gpus),
        *(
            ActorDemand(
                role=f"reward-{objective.name}",
                count=objective.replicas,
                num_cpus=objective.num_cpus,
                num_gpus=objective.num_gpus,
            )
            for objective in recipe.objectives
        ),
    ]


def check_fits(recipe: "Recipe", *, cpus: float, gpus: float, where: str) -> None:
    """Raises BadInput when the actors need more CPUs or GPUs than `where` has."""
    for resource, have in (("CPUs", cpus), ("GPUs", gpus)):
        per_actor = [d.num_cpus if resource == "CPUs" else d.num_gpus for d in demands(recipe)]
        need = sum(d.count * each for d, each in zip(demands(recipe), per_actor, strict=True))
        if need > have + 1e-6:
            parts = ", ".join(
                f"{d.role} {d.count} x {each:g}" for d, each in zip(demands(recipe), per_actor, strict=True) if each
            )
            raise BadInput(f"{where}: has {have:g} {resource}, the recipe's actors need {need:g} ({parts})")


def runs_that_fit(recipe: "Recipe") -> int:
    """Runs of the recipe that the cluster they join has room for now, at least 1; 1 where each starts its own."""
    if joins_existing(recipe) is None:
        return 1
    import ray

    with connect(recipe):
        free = ray.available_resources()
    return max(1, room(recipe, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0)))


def room(recipe: "Recipe", *, cpus: float, gpus: float) -> int:
    """How many times the recipe's actors fit into so many CPUs and GPUs."""
    need_cpus = sum(demand.count * demand.num_cpus for demand in demands(recipe))
    need_gpus = sum(demand.count * demand.num_gpus for demand in demands(recipe))
    return int(min(have / need + 1e-6 for have, need in ((cpus, need_cpus), (gpus, need_gpus)) if need))


def local_resources(recipe: "Recipe") -> tuple[float, float]:
    """(CPUs, GPUs) of the local cluster that `connect` would start."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = list(Path("/proc/driver/nvidia/gpus").glob("*"))
    gpus = len([d for d in visible.split(",") if d.strip()]) if visible is not None and devices else len(devices)
    return recipe.cluster.num_cpus or float(os.cpu_count() or 1), float(gpus)


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

    common: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": "warning"}
    try:
        if address:
            context = ray.init(address=address, **common)
        else:
            context = ray.init(
                address="local",
                num_cpus=recipe.cluster.num_cpus,
                object_store_memory=recipe.cluster.object_store_bytes,
                include_dashboard=recipe.cluster.dashboard,
                dashboard_host="127.0.0.1",
                **common,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not check:
            raise ComponentLost(f"the Ray cluster at {address or 'local'!r} does not answer: {error}") from None
        raise BadInput(f"cluster.address: no Ray cluster could be joined at {address or 'local'!r}: {error}") from None
    try:
        if check:
            total, where = ray.cluster_resources(), f"Ray cluster {address or '(local)'}"
            check_fits(recipe, cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0), where=where)
        yield context
    finally:
        ray.shutdown()
