"""How many threads an engine and a learner rank compute with, where they take turns. No Ray here."""

import os
from typing import TYPE_CHECKING

from learner.methods import make_method
from orchestrator.cluster.connection import joins_existing
from rewards.environment import whole_threads

if TYPE_CHECKING:
    from orchestrator.config import Recipe


def take_turns(recipe: "Recipe") -> bool:
    """Whether engines and learner never compute at once, and on one machine: on CPU, strictly on-policy, not on a
    cluster that is joined."""
    if joins_existing(recipe) is not None:
        return False
    method, loop = make_method(recipe.method), recipe.loop
    on_gpu = recipe.rollout.num_gpus or recipe.learner.num_gpus
    return not on_gpu and not any(method.staleness(step, loop.steps, loop.max_staleness) for step in range(loop.steps))


def with_threads(recipe: "Recipe", *, cores: int | None = None) -> "Recipe":
    """The recipe for one machine of so many cores (None: this one), its threads settled where it left them open.

    Engines that take turns with the learner compute with what it reserves as well, and its ranks with theirs: together
    no more than both reserve, so that runs side by side stay out of each other's way. No more than the cores either,
    unless more are reserved.
    """
    if not take_turns(recipe):
        return recipe
    if cores is None:
        cores = len(os.sched_getaffinity(0))
    engines, ranks = (recipe.rollout, recipe.rollout.engines), (recipe.learner, recipe.learner.ranks)
    reserved = sum(section.num_cpus * count for section, count in (engines, ranks))
    rollout, learner = (
        section.model_copy(
            update={"threads": max(whole_threads(section.num_cpus), whole_threads(min(reserved, cores) / count))}
        )
        if section.threads is None
        else section
        for section, count in (engines, ranks)
    )
    return recipe.model_copy(update={"rollout": rollout, "learner": learner})
