"""A run's actors joined into the stages that the driver calls."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.failures import Failures
from orchestrator.cluster.fleet import Fleet, Replica
from orchestrator.cluster.judging import Judges
from orchestrator.run.sampling import Sampler

if TYPE_CHECKING:
    from orchestrator.config import Recipe


def make_fleet(recipe: "Recipe", rollouts: Sequence[Any], failures: Failures, **broadcast: Any) -> Fleet:
    """`broadcast`: how a learner sends weights, `connect` and `push`; without it engines keep what they load."""
    return Fleet(
        [Replica(handle, f"rollout-{engine}", failures) for engine, handle in enumerate(rollouts)],
        start_timeout_s=recipe.rollout.start_timeout_s,
        generate_timeout_s=recipe.rollout.generate_timeout_s,
        **broadcast,
    )


def make_training_fleet(recipe: "Recipe", rollouts: Sequence[Any], learner: Any, failures: Failures) -> Fleet:
    """The engines and the learner that sends them weights; a colocated run's sleep while it computes."""
    fleet = make_fleet(
        recipe,
        rollouts,
        failures,
        connect=partial(learner.connect, workers_per_engine=recipe.rollout.tensor_parallel_size),
        push=learner.push_weights,
    )
    if recipe.rollout.colocated:
        learner.make_room = fleet.sleep
    return fleet


def make_sampler(
    recipe: "Recipe",
    fleet: Fleet,
    rewards: Mapping[str, Sequence[Any]],
    failures: Failures,
    threads: ThreadPoolExecutor | None = None,
) -> Sampler:
    """`threads`: for batches in flight; without them it only samples while the caller waits."""
    replicas = {
        name: [Replica(handle, f"reward-{name}-{replica}", failures) for replica, handle in enumerate(handles)]
        for name, handles in rewards.items()
    }
    return Sampler(fleet, Judges(replicas), timeout_s=recipe.rollout.generate_timeout_s, threads=threads)
