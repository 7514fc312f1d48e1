"""A run's actors joined into what the driver calls: a fleet of engines, a sampler, and a learner where one trains."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from learner.types import SyncReport
from orchestrator.cluster import connection
from orchestrator.cluster.crew import Actors, start_actors
from orchestrator.cluster.failures import Failures
from orchestrator.cluster.fleet import Fleet, Replica
from orchestrator.cluster.judging import Judges
from orchestrator.progress import waiting
from orchestrator.run.sampling import Sampler
from orchestrator.run.stages import CrewLearner, CrewSampler, Pushes
from orchestrator.run.stopping import StopFlag
from rewards.config import panel_name

if TYPE_CHECKING:
    from orchestrator.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """What a training run works with. Example: Crew(sampler=sampler, fleet=fleet, learner=learner)"""

    sampler: CrewSampler
    fleet: Pushes
    learner: CrewLearner


class Hire(Protocol):
    """Starts a training run's crew and ends it with the block."""

    def __call__(
        self, recipe: "Recipe", run_name: str, failures: Failures, stop: StopFlag, say: Callable[[str], None]
    ) -> AbstractContextManager[Crew]: ...


@contextlib.contextmanager
def hire_on_ray(
    recipe: "Recipe", run_name: str, failures: Failures, stop: StopFlag, say: Callable[[str], None]
) -> Iterator[Crew]:
    """The real crew, on the Ray cluster that the recipe joins or starts."""
    with contextlib.ExitStack() as hired:
        with waiting(say, "starting Ray, the vLLM engines, the reward models and the learner ..."):
            context = hired.enter_context(connection.connect(recipe, check=not failures.count))
            hired.enter_context(stop.installed_again())
            threads = ThreadPoolExecutor(recipe.loop.max_staleness + 1, thread_name_prefix="sampler")
            hired.enter_context(threads)
            actors = hired.enter_context(start_actors(recipe, run_name))
            hired.enter_context(failures.attempt())
        if context.dashboard_url:
            say(f"Ray dashboard http://{context.dashboard_url}")
        assert actors.learner is not None
        fleet = training_fleet(recipe, actors, failures)
        yield Crew(sampler=join_sampler(recipe, fleet, actors, failures, threads), fleet=fleet, learner=actors.learner)


def join_fleet(
    recipe: "Recipe",
    actors: Actors,
    failures: Failures,
    *,
    connect: Callable[[list], None] | None = None,
    push: Callable[[int], SyncReport | None] | None = None,
) -> Fleet:
    """The engines; without a way to send weights (`connect`, `push`) they keep what they load."""
    return Fleet(
        [Replica(handle, f"rollout-{engine}", failures) for engine, handle in enumerate(actors.rollouts)],
        start_timeout_s=recipe.rollout.start_timeout_s,
        generate_timeout_s=recipe.rollout.generate_timeout_s,
        connect=connect,
        push=push,
    )


def training_fleet(recipe: "Recipe", actors: Actors, failures: Failures) -> Fleet:
    """The engines and the learner that sends them weights; a colocated run's sleep while it computes."""
    learner = actors.learner
    assert learner is not None
    workers = recipe.rollout.tensor_parallel_size
    fleet = join_fleet(
        recipe,
        actors,
        failures,
        connect=partial(learner.connect, workers_per_engine=workers),
        push=learner.push_weights,
    )
    if recipe.rollout.colocated:
        learner.make_room = fleet.sleep
    return fleet


def join_sampler(
    recipe: "Recipe", fleet: Fleet, actors: Actors, failures: Failures, threads: ThreadPoolExecutor | None = None
) -> Sampler:
    """`threads`: for batches in flight; without them it only samples while the caller waits."""
    replicas = {
        names: [
            Replica(handle, f"reward-{panel_name(panel)}-{replica}", failures) for replica, handle in enumerate(handles)
        ]
        for panel, (names, handles) in zip(recipe.panels, actors.rewards.items(), strict=True)
    }
    judges = Judges(replicas, recipe.objective_names)
    return Sampler(fleet, judges, timeout_s=recipe.rollout.generate_timeout_s, threads=threads)
