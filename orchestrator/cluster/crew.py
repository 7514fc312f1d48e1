"""All actors of a run: started together and stopped together."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from actors.processes import reserve
from actors.types import RolloutError
from orchestrator.cluster.placement import pair_demand
from rewards.environment import model_source

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

    from learner.group import LearnerGroup
    from orchestrator.config import Recipe

Crew: TypeAlias = "tuple[list[ActorHandle], dict[str, list[ActorHandle]], LearnerGroup]"
"""The rollout engines, the reward actors of each objective in recipe order, and the learner."""


@contextlib.contextmanager
def start_actors(recipe: "Recipe", run_name: str) -> "Iterator[Crew]":
    """Start all actors side by side and wait until every one is ready; stop exactly these on the way out."""
    from ray.util import remove_placement_group

    from actors import reward, rollout
    from learner.group import LearnerGroup

    model = model_source(recipe.policy.model)
    started: list[Callable[[], None]] = []
    try:
        reserved = None
        if recipe.rollout.colocated:
            reserved = _reserve_pairs(recipe, run_name)
            started.append(lambda: remove_placement_group(reserved))
        with ThreadPoolExecutor(max_workers=3) as pool:
            learner = pool.submit(
                LearnerGroup.start,
                recipe.learner,
                model=model,
                total_steps=recipe.loop.steps,
                pairs_per_step=recipe.pairs_per_step,
                seed=recipe.seed,
                method=recipe.method,
                run_name=run_name,
                reserved=reserved,
            )
            rewards = pool.submit(reward.start_rewards, recipe.objectives, run_name=run_name)

            def start_rollouts() -> "list[ActorHandle]":
                if reserved is not None:
                    # vLLM measures its GPU when it loads, so the rank's part must be there and stay as it is; the same
                    # when an engine is started again later.
                    learner.result()
                return rollout.start_rollouts(
                    recipe.rollout, model=model, run_name=run_name, seed=recipe.seed, reserved=reserved
                )

            rollouts = pool.submit(start_rollouts)
            failures = [future.exception() for future in (rollouts, rewards, learner)]
            if not failures[0]:
                started.append(lambda: rollout.stop(rollouts.result()))
            if not failures[1]:
                started.append(lambda: reward.stop(rewards.result()))
            if not failures[2]:
                started.append(lambda: learner.result().close())
            for failure in failures:
                if failure is not None:
                    raise failure
        yield rollouts.result(), rewards.result(), learner.result()
    finally:
        for stop in reversed(started):
            with contextlib.suppress(Exception):
                stop()


def _reserve_pairs(recipe: "Recipe", run_name: str) -> "PlacementGroup":
    """The placement group whose bundle i holds engine i and learner rank i.

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
