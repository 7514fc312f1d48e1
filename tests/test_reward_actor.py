"""Judges behind Ray actors: names, missing scores, the audit judge, failures that reach the caller."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from actors.reward import RewardActor, start_rewards, stop
from rewards.config import ObjectiveConfig
from rewards.environment import is_device_failure
from rewards.judge_sections import PythonScorerConfig
from rewards.scorers import ScorerError
from tests.heads import wait_until_gone

pytestmark = pytest.mark.ray

CALL_S = 60
Rewards = dict[tuple[str, ...], list[Any]]


def letters(prompts: Sequence[str], responses: Sequence[str], *, letter: str = "a") -> list[float | None]:
    """A hand-made judge: counts a letter; has no opinion on empty responses."""
    return [response.count(letter) if response else None for response in responses]


def always_one(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1.0]


def judge(name: str, **options: Any) -> PythonScorerConfig:
    return PythonScorerConfig(function=f"tests.test_reward_actor:{name}", options=options)


@pytest.fixture(scope="module")
def rewards(ray_cluster: None) -> Iterator[Rewards]:
    objectives = [
        ObjectiveConfig(name="zeal", scorer=judge("letters"), audit=judge("letters", letter="z"), replicas=2),
        ObjectiveConfig(name="care", scorer=judge("always_one")),
    ]
    handles = start_rewards(objectives, run_name="test-reward", start_timeout_s=CALL_S)
    yield handles
    stop(handles)


def test_objectives_keep_the_order_of_the_recipe_and_replicas_have_names(
    rewards: Rewards,
) -> None:
    import ray

    assert list(rewards) == [("zeal",), ("care",)]
    assert [len(replicas) for replicas in rewards.values()] == [2, 1]
    assert ray.get_actor("test-reward/reward-zeal-1") == rewards["zeal",][1]
    told = ray.get(rewards["care",][0].ready.remote(), timeout=CALL_S)
    assert (told["objective"], told["scorer"]) == ("care", "python")
    assert repr(RewardActor((ObjectiveConfig(name="care", scorer=judge("letters")),))) == "RewardActor(objective=care)"


def test_scores_are_float64_and_a_missing_one_is_nan(rewards: Rewards) -> None:
    import ray

    scores = ray.get(rewards["zeal",][0].score.remote(["p"] * 3, ["banana", "", "fig"]), timeout=CALL_S)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, [[3.0], [np.nan], [0.0]])


def test_the_audit_judge_is_another_one_and_its_absence_is_an_error(rewards: Rewards) -> None:
    import ray

    scores = ray.get(rewards["zeal",][1].score.remote(["p"], ["pizza"], "audit"), timeout=CALL_S)
    np.testing.assert_array_equal(scores, [[2.0]])
    with pytest.raises(ScorerError, match="objective 'care' has no audit judge"):
        ray.get(rewards["care",][0].score.remote(["p"], ["r"], "audit"), timeout=CALL_S)


def test_a_judge_that_returns_the_wrong_length_fails_the_call(rewards: Rewards) -> None:
    import ray

    with pytest.raises(ScorerError, match="must return 2 scores, got 1"):
        ray.get(rewards["care",][0].score.remote(["p"] * 2, ["a", "b"]), timeout=CALL_S)


def test_a_lost_gpu_is_told_from_other_errors_by_what_torch_raised() -> None:
    import torch

    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    wrapped = ScorerError("my.scorer raised it")
    wrapped.__cause__ = lost
    assert is_device_failure(lost) and is_device_failure(wrapped)
    assert not is_device_failure(ScorerError("must return 2 scores")) and not is_device_failure(None)


def test_light_judges_load_no_torch(rewards: Rewards) -> None:
    import ray

    def heavy_modules(actor: RewardActor) -> list[str]:
        import sys

        return sorted({"torch", "transformers", "vllm"} & set(sys.modules))

    assert ray.get(rewards["zeal",][0].__ray_call__.remote(heavy_modules), timeout=CALL_S) == []


def visible_gpus(actor: RewardActor) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_judge_without_a_gpu_sees_none(rewards: Rewards) -> None:
    import ray

    assert ray.get(rewards["care",][0].__ray_call__.remote(visible_gpus), timeout=CALL_S) == ""


def test_a_judge_with_a_share_of_a_gpu_sees_the_one_that_ray_gave_it(ray_cluster: None) -> None:
    import ray

    sharing = ObjectiveConfig(name="sharing", scorer=judge("letters"), num_gpus=0.5)
    rewards = start_rewards([sharing], run_name="test-sharing", start_timeout_s=CALL_S)
    assert ray.get(rewards["sharing",][0].__ray_call__.remote(visible_gpus), timeout=CALL_S) == "0"
    stop(rewards)


def test_a_judge_that_cannot_be_loaded_stops_the_start_with_its_name(ray_cluster: None) -> None:

    broken = ObjectiveConfig(name="broken", scorer=judge("no_such_function"))
    with pytest.raises(ScorerError, match=r"^test-broken/reward-broken-0: module .* has no 'no_such_function'"):
        start_rewards([broken], run_name="test-broken", start_timeout_s=CALL_S)
    wait_until_gone("test-broken/reward-broken-0")
