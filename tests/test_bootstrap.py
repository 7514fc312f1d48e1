"""Intervals over prompts."""

import numpy as np
import pytest

from rewards.bootstrap import prompt_intervals
from rewards.pareto import conditional_reward_dispersion

GRID = np.array([[1.0, 0.0], [0.0, 1.0]])


def intervals(scores, **options):
    return prompt_intervals(GRID, scores, (-3, -3), rng=np.random.default_rng(0), **options)


def test_prompts_that_all_score_alike_leave_nothing_to_chance():
    found = intervals(np.broadcast_to(np.array([[2.0, -1.0], [-1.0, 2.0]])[:, None, None], (2, 9, 3, 2)))
    assert found["mip"] == pytest.approx((2, 2))
    assert found["hypervolume"] == pytest.approx((5 * 2 + 2 * 5 - 2 * 2,) * 2)


def test_the_interval_is_that_of_a_mean_over_prompts_however_many_answers_each_has():
    effect = np.random.default_rng(1).normal(size=200)
    scores = np.broadcast_to(effect[None, :, None, None], (2, 200, 4, 2))
    low, high = intervals(scores, draws=2000)["mip"]
    error = effect.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((effect.mean() - 1.96 * error, effect.mean() + 1.96 * error), abs=0.02)


def test_missing_answers_are_left_out():
    scores = np.zeros((2, 5, 2, 2))
    scores[0, 0, 0, 1] = np.nan
    assert intervals(scores)["mip"] == pytest.approx((0, 0))
    assert np.isnan(intervals(np.full((2, 5, 2, 2), np.nan))["mip"]).all()


def test_dispersion_and_rank_correlation_vary_with_the_prompts_too():
    scores = np.random.default_rng(2).normal(size=(2, 60, 3, 2))
    found = intervals(scores)
    low, high = found["crd"]
    assert low < conditional_reward_dispersion(scores.reshape(2, 180, 2)) < high
    assert found["steering_gap"][0] >= 0
    assert [np.shape(each) for each in found["spearman"]] == [(2,), (2,)]


def test_what_every_prompt_shows_has_no_interval_to_speak_of():
    apart = np.broadcast_to(np.array([[2.0, -1.0], [-1.0, 2.0]])[:, None, None], (2, 9, 3, 2))
    found = intervals(apart)
    assert found["spearman"] == [pytest.approx((1, 1))] * 2
    assert found["steering_gap"] == (0, 0)
    assert found["crd"] == pytest.approx((0, 0))
