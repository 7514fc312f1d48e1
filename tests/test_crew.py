"""The actors of a run together, as the driver starts them: real ones."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.crew import start_actors
from orchestrator.cluster.failures import Failures
from orchestrator.recipes import load_recipe
from orchestrator.run.wiring import training_fleet
from tests.whole_runs import tiny_recipe

CALL_S = 60


def ask(actor: Any, question: Any) -> Any:
    import ray

    return ray.get(actor.__ray_call__.remote(question), timeout=CALL_S)


def placement_groups(run_name: str) -> dict[str, str]:
    """Name -> state."""
    import ray

    table = ray.util.placement_group_table().values()
    return {group["name"]: group["state"] for group in table if group["name"].startswith(f"{run_name}/")}


@pytest.mark.ray
def test_a_colocated_engine_stands_beside_its_rank_and_sleeps_while_that_computes(
    ray_cluster: None, tmp_path: Path
) -> None:
    def is_asleep(actor: Any) -> bool:
        return actor._llm.llm_engine.is_sleeping()

    recipe = load_recipe(tiny_recipe(tmp_path), ["rollout.colocated=true", "loop.max_staleness=0"])
    with start_actors(recipe, "colocated") as actors:
        [engine], learner = actors.rollouts, actors.learner
        assert learner is not None
        assert placement_groups("colocated") == {
            "colocated/rollout+learner": "CREATED",
            "colocated/reward": "CREATED",
        }
        fleet = training_fleet(recipe, actors, Failures(recipe.cluster, tmp_path))
        fleet.push_weights(0)
        assert not ask(engine, is_asleep)
        learner.token_logprobs([(5, 6)], [(7, 8)])
        assert ask(engine, is_asleep)
        fleet.push_weights(1)
        assert not ask(engine, is_asleep) and fleet.engines[0].holds == 1
    assert set(placement_groups("colocated").values()) == {"REMOVED"}


@pytest.mark.ray
def test_an_engine_without_its_rank_keeps_the_place_of_both(ray_cluster: None, tmp_path: Path) -> None:
    """So that the judges of an evaluation fit beside it as they did in the run."""
    recipe = load_recipe(tiny_recipe(tmp_path), ["rollout.colocated=true", "loop.max_staleness=0"])
    with start_actors(recipe, "served", trains=False) as actors:
        assert len(actors.rollouts) == 1 and actors.learner is None
        assert placement_groups("served") == {"served/rollout+learner": "CREATED", "served/reward": "CREATED"}
    assert set(placement_groups("served").values()) == {"REMOVED"}
