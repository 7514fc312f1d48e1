"""A run whose ranks sit on two nodes with addresses of their own ends as on one node.

`test_end_to_end.py` has the one whose engine is on another node than its learner.
"""

import subprocess
from pathlib import Path

import pytest

from tests.two_nodes import ENGINES_AT_WORKER, train_on_two, two_networks
from tests.whole_runs import REPOSITORY, assert_same_results, command, tiny_recipe

pytestmark = [pytest.mark.ray, pytest.mark.full]
TIMEOUT_S = 240


def train_on_one_node(recipe: Path, run: Path, *overrides: str) -> Path:
    subprocess.run(
        command("train", recipe, *overrides, "--run-dir", run), cwd=REPOSITORY, check=True, timeout=TIMEOUT_S
    )
    return run


def test_zero_3_over_ranks_on_both_nodes_gives_the_same_run(tmp_path):
    recipe = tiny_recipe(tmp_path)
    overrides = ("telemetry.wandb=disabled", "learner.ranks=2", "learner.zero_stage=3", "learner.num_cpus=0.7")
    at_head = [f"objectives.{index}.node_labels={{pool: learner}}" for index in range(2)]
    with two_networks(tmp_path, cpus=(1, 1)) as two:  # no node has room for both ranks, and each has some beside one
        places = train_on_two(two, recipe, tmp_path / "two", *overrides, ENGINES_AT_WORKER, *at_head)
    assert sorted(places["learner"]) == [False, True]
    one = train_on_one_node(recipe, tmp_path / "one", *overrides, "cluster.num_cpus=2")
    assert_same_results(tmp_path / "two", one)
