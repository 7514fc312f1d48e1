"""How a number of GPUs is divided: every split that fits, the fastest first."""

import pytest

from orchestrator.cards import CARDS, card_named
from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.estimate.memory import shares
from orchestrator.estimate.shapes import model_shape
from orchestrator.estimate.split import splits
from orchestrator.estimate.table import split_rows
from tests.test_estimate import H100, RECIPES, recipe

PAPER = "helpful-qwen3-8b"


def divided(gpus: int, *overrides: str, card: str = "H100 80GB"):
    asked = recipe(*overrides, name=PAPER)
    shape = model_shape(asked.policy.model)
    assert shape is not None
    return splits(asked, shape, CARDS[card], gpus, 170)


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ([0.5, 0.5], [[0, 1]]),
        ([0.45, 0.7, 0.3, 0.0, 0.5], [[0, 4], [1, 2]]),
        ([1, 1, 0.1], [[0], [1], [2]]),
        ([2, 0.5], [[0], [0], [1]]),
        ([], []),
    ],
)
def test_who_asks_for_a_part_of_a_gpu_goes_to_the_fullest_that_has_room(asked, gpus):
    assert shares(asked) == gpus


def test_all_gpus_are_used_and_the_fastest_split_is_the_first():
    found = divided(8)
    assert {split.judges for split in found} == {1}
    for split in found:
        rollout, learner = split.recipe.rollout, split.recipe.learner
        own = learner.ranks if rollout.colocated else rollout.engines + learner.ranks
        assert own == 7
    assert sorted(split.recipe.learner.ranks for split in found) == [1, 2, 3, 4, 5, 6, 7]
    times = [split.time.total for split in found]
    assert times == sorted(times)
    assert found[0].time.idle < min(split.time.idle for split in found[1:])


def test_the_overrides_of_a_split_make_its_recipe():
    best = divided(8)[0]
    asked = [f"{key}={str(value).lower()}" for key, value in best.overrides.items()]
    again = recipe(*asked, name=PAPER)
    assert (again.rollout, again.learner, again.loop) == (best.recipe.rollout, best.recipe.learner, best.recipe.loop)
    rows = split_rows([best], H100, 8)
    assert rows[-1].endswith(" ".join(asked))


def test_engines_of_several_gpus_take_as_many_each():
    found = divided(8, "rollout.tensor_parallel_size=2")
    apart = [split.recipe for split in found if not split.recipe.rollout.colocated]
    assert sorted((each.rollout.engines, each.learner.ranks) for each in apart) == [(1, 5), (2, 3), (3, 1)]


def test_what_does_not_fit_is_told_with_the_reason():
    with pytest.raises(BadInput, match=r"no split of 1 x H100 80GB fits helpful-qwen3-8b: its judges take 1 of them"):
        divided(1)
    with pytest.raises(BadInput, match=r"no split of 8 x RTX A4000 fits .*: .*must .* GiB"):
        divided(8, card="RTX A4000")


def test_a_device_is_named_by_its_beginning():
    assert card_named("h100").name == "H100 80GB"
    assert card_named("A100 4").name == "A100 40GB"
    for wrong in ("tpu", ""):
        with pytest.raises(BadInput, match="--device: must be the beginning of one of B200, H200"):
            card_named(wrong)


def test_plan_divides_gpus_that_this_machine_does_not_have(capsys):
    main(["plan", str(RECIPES / f"{PAPER}.yaml"), "--gpus", "4", "--device", "h200"])
    printed = capsys.readouterr()
    assert "Split of 4 x H200" in printed.out and "rollout.engines=" in printed.out
    assert "no room for the recipe" not in printed.err
    assert main(["plan", str(RECIPES / "miniature.yaml"), "--live", "--gpus", "4"]) == 2
    assert "--live: the running cluster has its own GPUs" in capsys.readouterr().err
