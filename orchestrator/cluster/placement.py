"""What a run's actors ask of a cluster, what the cluster has, and whether the one fits into the other. No Ray here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.processes import Asks
from orchestrator.cards import Gpu
from orchestrator.files import as_text
from rewards.config import panel_name

if TYPE_CHECKING:
    from orchestrator.config import Recipe

ROUNDING = 1e-6
"""Ray counts resources in ten-thousandths; sums of fractions may miss a whole number by less than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorDemand:
    """One kind of actor of a run.

    Example: ActorDemand(role="rollout", count=2, num_cpus=1.0, num_gpus=1.0, node_labels={"pool": "h100"})
    """

    role: str
    count: int
    num_cpus: float  # per actor
    num_gpus: float  # per actor
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Only nodes that carry all of these will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster. Example: Node(name="10.0.0.7", cpus=16.0, gpus=4.0, labels={"pool": "h100"})"""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    cards: Sequence[Gpu] = ()
    """What its driver tells of its GPUs; empty where nobody asked."""


def demands(recipe: "Recipe") -> list[ActorDemand]:
    """Every actor of a training run, with what each asks of the cluster."""
    rollout, learner = recipe.rollout, recipe.learner
    judges = [_demand(f"reward-{panel_name(panel)}", panel[0].replicas, panel[0]) for panel in recipe.panels]
    if rollout.colocated:
        return [pair_demand(recipe), *judges]
    engines = _demand("rollout", rollout.engines, rollout, gpus_each=rollout.tensor_parallel_size)
    return [engines, _demand("learner", learner.ranks, learner), *judges]


def asking_keys(recipe: "Recipe") -> Iterator[str]:
    """Keys of the recipe that make it ask for as much as it does; those that ask for one actor or nothing are none."""
    parts: list[tuple[str, Asks, str]] = [("rollout", recipe.rollout, "engines"), ("learner", recipe.learner, "ranks")]
    parts += [(f"objectives.{index}", objective, "replicas") for index, objective in enumerate(recipe.objectives)]
    for section, part, count in parts:
        if getattr(part, count) > 1:
            yield f"{section}.{count}"
        yield from (f"{section}.{name}" for name in ("num_cpus", "num_gpus") if getattr(part, name))


def pair_demand(recipe: "Recipe") -> ActorDemand:
    """Of a colocated run: an engine and its learner rank as one, on one GPU; judges may have what they leave of it."""
    rollout, learner = recipe.rollout, recipe.learner
    return ActorDemand(
        role="rollout+learner",
        count=learner.ranks,
        num_cpus=round(rollout.num_cpus + learner.num_cpus, 4),  # as Ray counts
        num_gpus=round(rollout.num_gpus + learner.num_gpus, 4),
        node_labels=learner.node_labels,
    )


def _demand(role: str, count: int, each: Asks, *, gpus_each: int = 1) -> ActorDemand:
    gpus = each.num_gpus * gpus_each
    return ActorDemand(role=role, count=count, num_cpus=each.num_cpus, num_gpus=gpus, node_labels=each.node_labels)


def obstacles(asked: Sequence[ActorDemand], nodes: Sequence[Node]) -> Iterator[str]:
    """What makes it certain that the actors do not fit, even when nothing else runs; nothing where they may."""
    for demand in asked:
        able = [node for node in nodes if _is_labelled(node, demand)]
        if not able and demand.node_labels:
            yield f"{demand.role}: no node carries the labels {dict(demand.node_labels)}"
        elif not any(_holds(node, demand) for node in able):
            yield f"{demand.role}: no node has {_amounts(demand.num_cpus, demand.num_gpus)} for one actor"
        elif sum(_copies(node, demand) for node in able) < demand.count:
            most = sum(_copies(node, demand) for node in able)
            yield f"{demand.role}: there is room for {most} of its {demand.count} actors"
    enough = True
    for resource in ("CPUs", "GPUs"):
        need = sum(demand.count * _amount(demand, resource) for demand in asked)
        have = sum(_amount(node, resource) for node in nodes)
        if need > have + ROUNDING:
            enough = False
            yield f"all actors together need {need:g} {resource}, the nodes have {have:g}"
    if enough:
        yield from _too_large_beside(asked, sum(int(node.gpus) for node in nodes))


def _too_large_beside(asked: Sequence[ActorDemand], gpus: int) -> Iterator[str]:
    """Shares of GPUs that no GPU has left beside actors which have one each, because they take more than half of it."""
    large = [demand for demand in asked if demand.num_gpus > 0.5]
    left = [1 - demand.num_gpus for demand in large if demand.num_gpus < 1 for _ in range(demand.count)]
    left += [1.0] * max(0, gpus - sum(math.ceil(demand.num_gpus) * demand.count for demand in large))
    for demand in asked:
        if 0 < demand.num_gpus <= 0.5:
            room = sum(int(share / demand.num_gpus + ROUNDING) for share in left)
            if room < demand.count:
                beside = ", ".join(f"{other.role} ({other.num_gpus:g} each)" for other in large)
                yield (
                    f"{demand.role}: beside {beside} there is room for {room} of its {demand.count} actors with "
                    f"{demand.num_gpus:g} of a GPU each"
                )


def placement_table(asked: Sequence[ActorDemand], nodes: Sequence[Node]) -> str:
    """Demand and nodes side by side, for a person."""
    rows = [("asked by", "actors", "CPUs each", "GPUs each", "only on nodes with")]
    rows += [
        (demand.role, str(demand.count), f"{demand.num_cpus:g}", f"{demand.num_gpus:g}", _labels(demand.node_labels))
        for demand in asked
    ]
    if nodes:
        rows += [("", "", "", "", ""), ("node", "", "CPUs", "GPUs", "labels")]
    rows += [(node.name, "", f"{node.cpus:g}", f"{node.gpus:g}", _labels(node.labels)) for node in nodes]
    return "\n".join("  " + line for line in as_text(rows).split("\n"))


def copies_that_fit(asked: Sequence[ActorDemand], *, cpus: float, gpus: float) -> int:
    """How many times all actors fit into so many CPUs and GPUs, wherever these are."""
    needs = [
        (have, sum(demand.count * _amount(demand, resource) for demand in asked))
        for have, resource in ((cpus, "CPUs"), (gpus, "GPUs"))
    ]
    return int(min(have / need + ROUNDING for have, need in needs if need))


def _is_labelled(node: Node, demand: ActorDemand) -> bool:
    return all(node.labels.get(key) == value for key, value in demand.node_labels.items())


def _holds(node: Node, demand: ActorDemand) -> bool:
    return all(_amount(demand, resource) <= _amount(node, resource) + ROUNDING for resource in ("CPUs", "GPUs"))


def _copies(node: Node, demand: ActorDemand) -> float:
    """Actors of this kind that the node alone has room for; a share of a GPU is a share of one."""
    ratios = [node.cpus / demand.num_cpus + ROUNDING] if demand.num_cpus else []
    if demand.num_gpus:
        on_one = int(1 / demand.num_gpus + ROUNDING) if demand.num_gpus < 1 else 1 / demand.num_gpus
        ratios.append(node.gpus * on_one + ROUNDING)
    return int(min(ratios)) if ratios else float("inf")


def _amount(of: ActorDemand | Node, resource: str) -> float:
    if isinstance(of, Node):
        return of.cpus if resource == "CPUs" else of.gpus
    return of.num_cpus if resource == "CPUs" else of.num_gpus


def _amounts(cpus: float, gpus: float) -> str:
    return " and ".join(f"{amount:g} {name}" for amount, name in ((cpus, "CPUs"), (gpus, "GPUs")) if amount)


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
