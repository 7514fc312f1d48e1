"""Engine and learner take turns on one machine, each with the cores that the other leaves; else each with its own."""

import pytest

from orchestrator.cluster.threads import with_threads
from orchestrator.recipes import load_recipe
from tests.whole_runs import REPOSITORY

MINIATURE = REPOSITORY / "deploy" / "recipes" / "miniature.yaml"


def threads(*overrides, cores=64):
    """(of an engine, of a rank)"""
    recipe = with_threads(load_recipe(MINIATURE, list(overrides)), cores=cores)
    return recipe.rollout.threads, recipe.learner.threads


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.num_cpus=1", "learner.num_cpus=1"], (2, 2)),
        (
            ["rollout.num_cpus=0.75", "learner.num_cpus=0.75"],
            (1, 1),
        ),  # rounded up, a second run beside it would find no core
        (["rollout.num_cpus=2", "rollout.engines=2", "learner.num_cpus=4"], (4, 8)),
        (["rollout.num_cpus=2", "learner.num_cpus=2", "learner.ranks=2"], (6, 3)),
        (["rollout.num_cpus=1", "learner.num_cpus=3", "rollout.threads=1"], (1, 4)),
    ],
)
def test_who_takes_turns_computes_with_what_both_reserve(overrides, expected):
    assert threads("loop.max_staleness=0", *overrides) == expected


def test_a_machine_with_fewer_cores_gives_no_more_threads_than_those_or_than_are_reserved():
    two = ["loop.max_staleness=0", "rollout.num_cpus=2", "learner.num_cpus=1"]
    assert threads(*two, cores=2) == (2, 2)
    assert threads(*two, cores=1) == (2, 1)


@pytest.mark.parametrize("overlaps", ["loop.max_staleness=1", "rollout.num_gpus=1", "method=ric"])
def test_who_computes_at_once_keeps_to_its_own(overlaps):
    assert threads("loop.max_staleness=0", "rollout.num_cpus=1", "learner.num_cpus=1", overlaps) == (None, None)
