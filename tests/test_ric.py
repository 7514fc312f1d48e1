"""Rewards-in-Context: levels, targets, the filter, and what is imitated under which prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.types import Response, Rollout
from learner.losses import supervised_loss
from orchestrator.errors import RunFailed
from orchestrator.recipes import load_recipe
from orchestrator.run.batching import RequestBatch, ScoredBatch, make_request
from orchestrator.run.conditioning import PolicyConditioning
from orchestrator.run.ric import Row, annotate, labelled_batches, online_rows
from rewards.config import PreferencesConfig
from rewards.preferences import PreferenceError
from rewards.targets import (
    LevelRenderer,
    LevelScale,
    TargetRenderer,
    keep_high,
    sample_target_levels,
    target_levels,
)
from tests.word_tokenizer import WordTokenizer

RECIPE = load_recipe(Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml", ["method=ric"])
PARTS = (RECIPE.preferences.conditioning, RECIPE.objective_names, 1, WordTokenizer())


@pytest.mark.parametrize("k", [2, 3])
def test_a_one_hot_preference_asks_for_the_extreme_of_its_objective(k):
    assert np.array_equal(target_levels(np.eye(k)), np.eye(k))


def test_an_even_preference_asks_for_even_levels_above_the_weights():
    assert target_levels([0.5, 0.5]) == pytest.approx([2**-0.5, 2**-0.5])


def test_explored_targets_are_high_in_all_objectives_but_one():
    levels = sample_target_levels(np.random.default_rng(0), 500, 3)
    assert ((levels == 1).sum(axis=1) == 2).all()
    assert set(levels.argmin(axis=1)) == {0, 1, 2}
    assert levels.min() >= 0 and levels.min(axis=1).mean() == pytest.approx(0.25, abs=0.03)  # smallest of three


def test_a_level_is_the_share_of_offline_responses_below():
    scale = LevelScale([[1.0, 10.0], [2.0, 10.0], [3.0, 20.0], [4.0, 30.0]])
    assert scale.levels([0.0, 99.0]).tolist() == [0, 1]
    assert scale.levels([2.5, 10.0]).tolist() == [0.5, 0.25]
    assert scale.levels([[3.0, 20.0]]).tolist() == [[0.625, 0.625]]
    with pytest.raises(ValueError, match="finite"):
        LevelScale([[1.0, float("nan")]])


def test_a_response_is_kept_when_it_is_high_in_any_objective():
    assert keep_high([[0.8, 0.1], [0.6, 0.7], [0.0, 0.71]], quantile=0.7).tolist() == [True, False, True]


def test_levels_are_printed_as_they_are_and_weights_become_targets():
    assert "<helpfulness> 0.9 <harmlessness> 0.8" in LevelRenderer(*PARTS).text("x", [0.9, 0.84])
    assert "<helpfulness> 1.0 <harmlessness> 0.0" in TargetRenderer(*PARTS).text("x", [1, 0])
    assert "<helpfulness> 0.6 <harmlessness> 0.8" in TargetRenderer(*PARTS).text("x", [0.43, 0.57])
    with pytest.raises(PreferenceError, match="levels must lie in"):
        LevelRenderer(*PARTS).text("x", [1.2, 0.0])
    with pytest.raises(PreferenceError, match="sum to 1"):
        TargetRenderer(*PARTS).text("x", [0.9, 0.8])


def test_a_policy_remembers_that_it_asks_for_levels():
    policy = PolicyConditioning(
        objectives=RECIPE.objective_names,
        preferences=PreferencesConfig(),
        asks_for="levels",
        max_new_tokens=8,
        temperature=1.0,
    )
    assert "<helpfulness> 1.0" in policy.renderer(WordTokenizer()).text("x", [1, 0])
    assert "0.7 <harmlessness> 0.7" in policy.renderer(WordTokenizer()).text("x", [0.5, 0.5])


def scored(scores):
    writer = LevelRenderer(*PARTS)
    requests = tuple(
        make_request(writer, prompt=f"p{i}", preference=(0.5, 0.5), num_responses=2, seed_parts=(i,))
        for i in range(len(scores))
    )
    rollouts = tuple(
        Rollout(
            request=request,
            responses=tuple(
                Response(token_ids=(10 * i + j, 1), text="", finish_reason="stop", logprob=0.0) for j in range(2)
            ),
            min_policy_version=0,
            max_policy_version=0,
        )
        for i, request in enumerate(requests)
    )
    batch = RequestBatch(step=0, requests=requests, preference_neg=np.zeros((len(scores), 2)))
    return ScoredBatch(batch=batch, rollouts=rollouts, scores=np.array(scores, dtype=float), seconds={})


def test_every_response_is_imitated_under_the_levels_it_reached_and_unscored_ones_are_left_out():
    writer = LevelRenderer(*PARTS)
    batch = scored([[[1, 4], [2, 3]], [[3, 2], [float("nan"), 1]]])
    rows = annotate([batch], LevelScale([[1, 1], [2, 2], [3, 3], [4, 4]]), writer)
    assert [row.response_ids for row in rows] == [(0, 1), (1, 1), (10, 1)]
    assert rows[0].levels == (0.125, 0.875)
    assert rows[2].prompt_ids == tuple(writer.token_ids("p1", (0.625, 0.375)))


def row(*levels):
    return Row(prompt_ids=(1,), response_ids=(2,), levels=levels)


def test_online_a_third_of_what_is_imitated_is_offline_and_all_of_it_high():
    online = [row(0.9, 0.0)] * 10 + [row(0.1, 0.2)] * 10
    offline = [row(0.0, 0.8)] * 50 + [row(0.5, 0.5)] * 50
    kept = online_rows(online, offline, np.random.default_rng(0))
    assert sorted(kept, key=str) == sorted([row(0.9, 0.0)] * 10 + [row(0.0, 0.8)] * 5, key=str)
    with pytest.raises(RunFailed, match="no response reaches level"):
        online_rows([row(0.1, 0.2)], [], np.random.default_rng(0))


def test_batches_go_through_all_rows_before_any_comes_again():
    rows = [Row(prompt_ids=(i + 1,), response_ids=(i + 1,), levels=(0.5,)) for i in range(6)]
    batches = labelled_batches(rows, steps=3, pairs=2, rng=np.random.default_rng(0))
    dealt = [prompt for batch in batches for pair in batch for prompt in pair.prompt_ids]
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert sorted(dealt[:6]) == sorted(dealt[6:]) == [(i + 1,) for i in range(6)]
    assert all(pair.prompt_ids == pair.response_ids for batch in batches for pair in batch)


def test_the_supervised_loss_is_the_mean_over_responses_of_nats_per_token():
    output = supervised_loss(torch.tensor([[-2.0, -9.0]]), torch.tensor([[2, 3]]))
    assert output.loss.item() == pytest.approx((1 + 3) / 2)
    assert output.metrics["logprob_mean"].item() == pytest.approx(-5.5)
    with pytest.raises(ValueError, match="must agree"):
        supervised_loss(torch.zeros(1, 2), torch.zeros(2, 2))
