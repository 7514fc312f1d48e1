"""Runs whose parts sit on two nodes with addresses of their own end as those on one node."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos import PROCESS_OF
from tests.two_nodes import TwoNetworks, unavailable
from tests.whole_runs import REPOSITORY, assert_same_results, command, lines, steps_done, tiny_recipe

pytestmark = pytest.mark.ray
TIMEOUT_S = 240
PINNED = ("rollout.node_labels={pool: rollout}", "learner.node_labels={pool: learner}")


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[Callable[..., TwoNetworks]]:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    made: list[TwoNetworks] = []

    def start(*, cpus: tuple[int, int]) -> TwoNetworks:
        made.append(TwoNetworks(tmp_path, cpus=cpus))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.close()


def train_on_one_node(recipe: Path, run: Path, *overrides: str) -> Path:
    subprocess.run(
        command("train", recipe, *overrides, "--run-dir", run), cwd=REPOSITORY, check=True, timeout=TIMEOUT_S
    )
    return run


def train_on_two(networks: TwoNetworks, recipe: Path, run: Path, *overrides: str) -> dict[str, list[bool]]:
    """Where the actors were seen: role -> for each, whether it is the head's."""
    asked = networks.head.command(*command("train", recipe, *overrides, "--run-dir", run))
    process = subprocess.Popen(asked, cwd=REPOSITORY, env={**os.environ, "RAY_ADDRESS": networks.address})
    places: dict[str, list[bool]] = {}
    try:
        while process.poll() is None:
            if not places and steps_done(run):
                places = seen(networks)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    return places


def seen(networks: TwoNetworks) -> dict[str, list[bool]]:
    places: dict[str, list[bool]] = {role: [] for role in PROCESS_OF}
    for node in (networks.head, networks.worker):
        assert node.node is not None
        for process in psutil.Process(node.node.pid).children(recursive=True):
            for role, title in PROCESS_OF.items():
                if title in " ".join(process.cmdline()):
                    places[role].append(networks.head.holds(process))
    return places


def test_weights_that_cross_the_network_give_the_same_run(networks, tmp_path):
    recipe, steps = tiny_recipe(tmp_path), 12
    overrides = ("telemetry.wandb=disabled", f"loop.steps={steps}")
    two = networks(cpus=(1, 1))
    before = two.carried_bytes()
    places = train_on_two(two, recipe, tmp_path / "two", *overrides, *PINNED)
    assert places["learner"] == [True] and places["rollout"] == [False]
    sent = sum(record["sync_bytes"] for record in lines(tmp_path / "two" / "metrics.jsonl"))
    assert sent > 0 and two.carried_bytes() - before > sent
    assert_same_results(tmp_path / "two", train_on_one_node(recipe, tmp_path / "one", *overrides))


def test_zero_3_over_ranks_on_both_nodes_gives_the_same_run(networks, tmp_path):
    recipe = tiny_recipe(tmp_path)
    overrides = ("telemetry.wandb=disabled", "learner.ranks=2", "learner.zero_stage=3", "learner.num_cpus=0.7")
    at_head = [f"objectives.{index}.node_labels={{pool: learner}}" for index in range(2)]
    two = networks(cpus=(1, 1))  # no node has room for both ranks, and each has some beside one
    places = train_on_two(two, recipe, tmp_path / "two", *overrides, PINNED[0], *at_head)
    assert sorted(places["learner"]) == [False, True]
    one = train_on_one_node(recipe, tmp_path / "one", *overrides, "cluster.num_cpus=2")
    assert_same_results(tmp_path / "two", one)
