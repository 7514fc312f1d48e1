"""Whether a run's actors fit a cluster, and how it is told."""

import pytest

from orchestrator.cluster.placement import ActorDemand, Node, copies_that_fit, obstacles, placement_table

NODES = [
    Node(name="head", cpus=4, gpus=0),
    Node(name="gpu-0", cpus=16, gpus=4, labels={"pool": "h100"}),
    Node(name="gpu-1", cpus=16, gpus=4, labels={"pool": "a100"}),
]


def demand(role="rollout", count=1, num_cpus=1.0, num_gpus=0.0, **labels):
    return ActorDemand(role=role, count=count, num_cpus=num_cpus, num_gpus=num_gpus, node_labels=labels)


@pytest.mark.parametrize(
    "asked",
    [
        [demand(count=2, num_cpus=2, num_gpus=4)],
        [demand(count=4, num_gpus=1, pool="h100"), demand("learner", 4, 1, 1, pool="a100")],
        [demand(count=16, num_cpus=0.5, num_gpus=0.5)],
        [demand(count=3, num_cpus=0.1, num_gpus=0.1), demand("reward-a", count=100, num_cpus=0)],
    ],
)
def test_what_may_fit_has_no_obstacle(asked):
    assert list(obstacles(asked, NODES)) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (demand(num_gpus=8), "rollout: no node has 1 CPUs and 8 GPUs for one actor"),
        (demand(count=3, num_gpus=4), "rollout: there is room for 2 of its 3 actors"),
        (demand(count=5, num_gpus=1, pool="h100"), "rollout: there is room for 4 of its 5 actors"),
        (demand(pool="b200"), "rollout: no node carries the labels {'pool': 'b200'}"),
        (demand(num_cpus=17), "rollout: no node has 17 CPUs for one actor"),
    ],
)
def test_what_cannot_fit_is_named_with_what_is_missing(asked, said):
    assert said in list(obstacles([asked], NODES))


def test_actors_that_fit_one_by_one_may_be_too_many_together():
    asked = [demand(count=6, num_gpus=1), demand("learner", count=4, num_gpus=1)]
    assert list(obstacles(asked, NODES)) == ["all actors together need 10 GPUs, the nodes have 8"]


def test_the_table_shows_what_is_asked_and_what_is_there():
    table = placement_table([demand(count=2, num_gpus=0.5, pool="h100")], NODES[:2])
    assert [line.split() for line in table.splitlines()] == [
        ["asked", "by", "actors", "CPUs", "each", "GPUs", "each", "only", "on", "nodes", "with"],
        ["rollout", "2", "1", "0.5", "pool=h100"],
        [],
        ["node", "CPUs", "GPUs", "labels"],
        ["head", "4", "0"],
        ["gpu-0", "16", "4", "pool=h100"],
    ]


def test_runs_are_counted_by_the_scarcer_resource():
    asked = [demand(count=2, num_cpus=0.5, num_gpus=1), demand("learner", num_cpus=1)]
    assert [copies_that_fit(asked, cpus=cpus, gpus=4) for cpus in (1.9, 2, 100)] == [0, 1, 2]
