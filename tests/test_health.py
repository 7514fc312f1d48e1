"""What is called a problem, and what follows when it lasts."""

import numpy as np
import pytest

from actors.types import GenerationRequest, Response, Rollout
from orchestrator.errors import RunFailed
from orchestrator.run.batching import RequestBatch, ScoredBatch
from orchestrator.run.health import LikelyTokens, Watch, find_problems
from orchestrator.run.stages import Probed
from orchestrator.sections import HealthConfig
from rewards.prompts import Prompt

OBJECTIVES = ("helpfulness", "harmlessness")


def scored(scores, *, texts=("a", "b"), finish_reason="stop"):
    request = GenerationRequest(
        request_id="r", prompt=Prompt(text="p"), prompt_ids=(1,), preference=(0.5, 0.5), num_responses=2, seed=1
    )
    responses = tuple(
        Response(token_ids=(4,), text=text, finish_reason=finish_reason, logprobs=(-1.0,)) for text in texts
    )
    rollout = Rollout(request=request, responses=responses, min_policy_version=0, max_policy_version=0)
    batch = RequestBatch(step=0, requests=(request, request), preference_neg=np.zeros((2, 1, 2)))
    return ScoredBatch(batch=batch, rollouts=(rollout, rollout), scores=np.asarray(scores, dtype=float), seconds={})


HEALTHY = scored([[[1, 5], [2, 6]], [[3, 7], [4, 8]]])


def problems(batch, logratio_mean=0.5, **config):
    return find_problems(batch, logratio_mean, HealthConfig(**config), OBJECTIVES)


def test_a_healthy_step_has_no_problem():
    assert problems(HEALTHY) == []


def test_a_judge_that_says_the_same_of_everything_is_named_and_missing_scores_do_not_hide_it():
    assert problems(scored([[[1, 5], [2, 5]], [[3, 5], [4, np.nan]]])) == ["constant_reward/harmlessness"]
    assert problems(scored([[[1, 5], [2, np.nan]], [[3, np.nan], [4, np.nan]]])) == []


def test_one_text_for_every_prompt_is_a_collapse():
    assert problems(scored(HEALTHY.scores, texts=("same", "same"))) == ["identical_responses"]


def test_responses_that_never_end_are_named():
    assert problems(scored(HEALTHY.scores, finish_reason="length")) == ["cut_responses"]


@pytest.mark.parametrize("value", [10.5, -10.5, float("nan"), float("inf")])
def test_a_log_ratio_beyond_its_bound_is_exploding(value):
    assert problems(HEALTHY, value, max_logratio=10) == ["exploding_logratio"]


def test_a_step_without_an_update_has_no_log_ratio_to_explode():
    assert problems(HEALTHY, None) == []


def test_likely_tokens_are_compared_with_what_they_were_at_the_first_probe():
    likely = LikelyTokens(HealthConfig(min_top_entropy=0.25, max_mass_lost=0.1))
    at = {"start": (1.0, 0.95), "steered": (0.26, 0.86), "narrow": (0.24, 0.95), "scattered": (1.2, 0.84)}
    probes = {
        name: Probed(engine_mismatch=0.0, top_entropy=entropy, top_mass=mass) for name, (entropy, mass) in at.items()
    }
    assert likely.problems(None) == likely.problems(probes["start"]) == likely.problems(probes["steered"]) == []
    assert likely.problems(probes["narrow"]) == ["narrow_tokens"] and likely.problems(None) == []
    assert likely.problems(probes["scattered"]) == ["lost_mass"]


def test_what_one_probe_shows_must_show_in_the_next_however_many_steps_lie_between():
    watch = Watch(HealthConfig(patience=10))
    assert watch.step(0, ["lost_mass"], probed=True) == []
    assert [watch.step(step, ["cut_responses"]) for step in range(1, 6)] == [[]] * 5
    (line,) = watch.step(6, ["lost_mass"], probed=True)
    assert line.startswith("step 6: lost_mass for 2 probes in a row: the likeliest next tokens lost more than")
    assert watch.step(7, [], probed=True) == watch.step(8, ["lost_mass"], probed=True) == []


def test_a_problem_is_told_once_when_it_has_lasted_and_again_when_it_came_back():
    watch = Watch(HealthConfig(patience=2))
    seen = [["cut_responses"], ["cut_responses", "identical_responses"], ["cut_responses"], [], ["cut_responses"]]
    assert [len(watch.step(step, found)) for step, found in enumerate(seen)] == [0, 1, 0, 0, 0]
    (line,) = watch.step(5, ["cut_responses"])
    assert line == ("step 5: cut_responses for 2 steps in a row: every response of a step was cut at the length limit")


def test_a_recipe_may_have_the_run_stopped():
    watch = Watch(HealthConfig(patience=1, rule="stop"))
    with pytest.raises(RunFailed, match=r"step 3: constant_reward/helpfulness for 1 steps in a row: .* same score"):
        watch.step(3, ["constant_reward/helpfulness"])
