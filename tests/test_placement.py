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


def test_judges_may_have_what_a_pair_leaves_of_its_gpu():
    pair = demand("rollout+learner", 2, num_gpus=0.9)
    judges = [demand("reward-a", 2, 0.1, 0.05), demand("reward-b", 2, 0.1, 0.05)]
    assert list(obstacles([pair, *judges], [Node(name="one", cpus=8, gpus=2)])) == []


@pytest.mark.parametrize(
    ("large", "gpus", "judges", "said"),
    [
        (0.9, 2, demand("reward-a", 1, 0.1, 0.2), "beside rollout+learner (0.9 each) there is room for 0 of its 1"),
        (0.8, 2, demand("reward-a", 2, 0.1, 0.15), None),
        (0.7, 2, demand("reward-a", 2, 0.1, 0.2), None),
        (0.7, 3, demand("reward-a", 3, 0.1, 0.5), "beside rollout+learner (0.7 each) there is room for 2 of its 3"),
    ],
)
def test_a_share_that_no_gpu_has_left_is_an_obstacle_although_the_sum_is_enough(large, gpus, judges, said):
    found = list(obstacles([demand("rollout+learner", 2, num_gpus=large), judges], [Node(name="n", cpus=9, gpus=gpus)]))
    share = f"{judges.num_gpus:g}"
    assert found == ([] if said is None else [f"reward-a: {said} actors with {share} of a GPU each"])


def test_a_share_of_a_gpu_is_a_share_of_one():
    found = list(obstacles([demand(count=3, num_gpus=0.6)], [Node(name="n", cpus=9, gpus=2)]))
    assert found == ["rollout: there is room for 2 of its 3 actors"]
