"""All actors of a run: started together and stopped together."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.processes import reserve, stop_actors
from actors.types import RolloutError
from orchestrator.cluster.placement import pair_demand
from orchestrator.cluster.threads import with_threads
from rewards.environment import model_source

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

    from learner.group import LearnerGroup
    from orchestrator.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """Example: Actors(rollouts=[engine], rewards={("helpfulness",): [judge]}, learner=None)"""

    rollouts: "Sequence[ActorHandle]"
    """In engine order."""
    rewards: "Mapping[tuple[str, ...], Sequence[ActorHandle]]"
    """Names of a panel's objectives -> its replicas."""
    learner: "LearnerGroup | None"


@contextlib.contextmanager
def start_actors(
    recipe: "Recipe", run_name: str, *, served: str | None = None, trains: bool = True
) -> Iterator[Actors]:
    """Start all actors side by side and wait until every one is ready; stop exactly these on the way out.

    Args:
        served: the model that the engines load; None: the recipe's starting policy.
        trains: with the learner.
    """
    from ray.util import remove_placement_group

    from actors import reward, rollout
    from learner.group import LearnerGroup

    recipe = with_threads(recipe)
    model = model_source(recipe.policy.model)
    started: list[Callable[[], None]] = []
    try:
        reserved = None
        if recipe.rollout.colocated:
            # Before the judges, whose shares might leave no GPU with room for a pair.
            reserved = _reserve_pairs(recipe, run_name)
            started.append(lambda: remove_placement_group(reserved))
        with start_threads(3) as pool:
            learner = pool.submit(
                lambda: (
                    LearnerGroup.start(
                        recipe.learner,
                        model=model,
                        method=recipe.method,
                        total_steps=recipe.loop.steps,
                        seed=recipe.seed,
                        run_name=run_name,
                        reserved=reserved,
                    )
                    if trains
                    else None
                )
            )
            rewards = pool.submit(reward.start_rewards, recipe.objectives, run_name=run_name)

            def start_rollouts() -> "list[ActorHandle]":
                if reserved is not None:
                    # vLLM measures its GPU when it loads, so the rank's part must be there and stay as it is; the same
                    # when an engine is started again later.
                    learner.result()
                return rollout.start_rollouts(
                    recipe.rollout,
                    model=model if served is None else model_source(served),
                    run_name=run_name,
                    seed=recipe.seed,
                    reserved=reserved,
                )

            rollouts = pool.submit(start_rollouts)
            failures = [future.exception() for future in (rollouts, rewards, learner)]
            if not failures[0]:
                started.append(lambda: stop_actors(rollouts.result()))
            if not failures[1]:
                started.append(lambda: reward.stop(rewards.result()))
            group = None if failures[2] else learner.result()
            if group is not None:
                started.append(group.close)
            for failure in failures:
                if failure is not None:
                    raise failure
        yield Actors(rollouts=rollouts.result(), rewards=rewards.result(), learner=group)
    finally:
        for stop in reversed(started):
            with contextlib.suppress(Exception):  # of a cluster that is gone; the first error is the one to tell
                stop()


@contextlib.contextmanager
def start_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Waited for at the end of the block, but not by a stop: they wait for actors until Ray is shut down."""
    pool = ThreadPoolExecutor(max_workers=count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _reserve_pairs(recipe: "Recipe", run_name: str) -> "PlacementGroup":
    """The placement group whose bundle i holds engine i and learner rank i; the engine alone where nothing is trained.

    One for both: where fractions of GPUs are reserved apart, two ranks may get one GPU and two engines the other.
    """
    pair = pair_demand(recipe)
    return reserve(
        [pair] * pair.count,
        group=f"{run_name}/{pair.role}",
        placement=recipe.rollout.placement,
        timeout_s=recipe.rollout.start_timeout_s,
        error=RolloutError,
    )
