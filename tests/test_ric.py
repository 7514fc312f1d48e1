"""Rewards-in-Context: levels, targets, the filter, and what is imitated under which prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from actors.types import Response, Rollout
from learner.losses import supervised_loss
from orchestrator.recipes import load_recipe
from orchestrator.run.batching import Batcher, ScoredBatch
from orchestrator.run.steering import PolicyConditioning
from rewards.config import PreferencesConfig
from rewards.normalize import Normalizer, NormalizerError
from rewards.preferences import PromptRenderer
from rewards.simplex import PreferenceError
from rewards.targets import (
    LevelRenderer,
    TargetRenderer,
    keep_high,
    quantile_levels,
    sample_target_levels,
    target_levels,
)
from tests.word_tokenizer import WordTokenizer
from tests.written_prompts import plain

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"
RECIPE = load_recipe(MINIATURE, ["method=ric"])
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


def test_a_level_is_the_share_of_the_start_s_responses_below():
    base = Normalizer(objectives=("a", "b"), mean=(0, 0), std=(1, 1), quantiles=((1, 10), (2, 10), (3, 20), (4, 30)))
    assert quantile_levels(np.array([0.0, 99.0]), base).tolist() == [0, 1]
    assert quantile_levels(np.array([2.5, 10.0]), base).tolist() == [0.5, 0.25]
    assert quantile_levels(np.array([[3.0, 20.0]]), base).tolist() == [[0.625, 0.625]]
    assert np.isnan(quantile_levels(np.array([np.nan, np.inf]), base)).all()
    with pytest.raises(NormalizerError, match="without quantiles"):
        quantile_levels(np.zeros(2), Normalizer(objectives=("a", "b"), mean=(0, 0), std=(1, 1)))


def test_the_start_s_scores_are_kept_as_quantiles_that_give_uniform_levels():
    scores = np.random.default_rng(0).exponential(size=(4000, 1))
    base = Normalizer.fit(("a",), scores)
    assert Normalizer.from_dict(base.to_record()) == base
    assert "quantiles" not in base.to_dict()
    levels = quantile_levels(scores, base)[:, 0]
    assert np.histogram(levels, bins=5, range=(0, 1))[0] / 4000 == pytest.approx([0.2] * 5, abs=0.02)


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


NORMALIZER = Normalizer(
    objectives=RECIPE.objective_names, mean=(0, 0), std=(1, 1), quantiles=((1, 1), (2, 2), (3, 3), (4, 4))
)


def make_batcher(*overrides):
    sizes = ["loop.prompts_per_step=6", "loop.steps=10"]
    recipe = load_recipe(MINIATURE, ["method=ric", *sizes, *overrides])
    return Batcher(recipe, plain(*(f"p{i}" for i in range(12))), PromptRenderer(*PARTS), NORMALIZER)


def scored(batch, scores):
    rollouts = tuple(
        Rollout(
            request=request,
            responses=tuple(
                Response(token_ids=(10 * i + j, 1), text="", finish_reason="stop", logprobs=(0.0, 0.0))
                for j in range(2)
            ),
            min_policy_version=0,
            max_policy_version=0,
        )
        for i, request in enumerate(batch.requests)
    )
    return ScoredBatch(batch=batch, rollouts=rollouts, scores=np.array(scores, dtype=float), seconds={})


def test_every_response_is_imitated_under_the_levels_it_reached_and_unscored_ones_are_left_out():
    batcher = make_batcher()
    batch = batcher.requests(0)
    found, _ = batcher.examples(scored(batch, [[[1, 4], [2, 3]], [[3, 2], [np.nan, 1]], *np.ones((4, 2, 2))]))
    assert [example.responses for example in found.examples[:4]] == [((0, 1),), ((1, 1),), ((10, 1),), ((20, 1),)]
    assert found.examples[0].preference == (0.125, 0.875)
    expected = LevelRenderer(*PARTS).token_ids(batch.requests[1].prompt, (0.625, 0.375))
    assert found.examples[2].prompts == (tuple(expected),)
    assert len(found.examples) == 11


def test_the_first_half_asks_as_the_start_reads_and_the_second_for_levels_of_which_most_are_high():
    batcher = make_batcher()
    early, late = batcher.requests(4), batcher.requests(5)
    for request in early.requests:
        assert sum(request.preference) == pytest.approx(1)
        assert list(request.prompt_ids) == batcher.renderer.token_ids(request.prompt, request.preference)
    levels = np.array([request.preference for request in late.requests])
    assert np.linalg.norm(levels[:2], axis=1) == pytest.approx(1), "a third asks for what a w asks for"
    assert (levels[2:].max(axis=1) == 1).all()
    for request in late.requests:
        assert list(request.prompt_ids) == LevelRenderer(*PARTS).token_ids(request.prompt, request.preference)


def test_in_the_second_half_only_what_is_high_in_some_objective_is_imitated():
    batcher = make_batcher()
    scores = [[[9, 0], [2, 2]], *[[[0, 0], [3, 4.5]]] * 5]
    found, _ = batcher.examples(scored(batcher.requests(5), scores))
    assert [example.responses[0][0] for example in found.examples] == [0, 11, 21, 31, 41, 51]
    assert len(batcher.examples(scored(batcher.requests(4), scores))[0].examples) == 12


def test_each_half_is_sampled_by_the_policy_that_it_begins_with():
    batcher = make_batcher("loop.max_staleness=1")
    assert [batcher.staleness(step) for step in range(10)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_the_supervised_loss_is_the_mean_over_responses_of_nats_per_token():
    output = supervised_loss(torch.tensor([-2.0, -9.0]), torch.tensor([2, 3]))
    assert output.loss.item() == pytest.approx((1 + 3) / 2)
    assert output.metrics["logprob_mean"].item() == pytest.approx(-5.5)
    with pytest.raises(ValueError, match="must agree"):
        supervised_loss(torch.zeros(1, 2), torch.zeros(2, 2))
