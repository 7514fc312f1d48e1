"""Scores to pair weights, conflicts and ties."""

import pytest
import torch

from learner.config import LearnerConfig
from learner.methods import METHODS
from learner.pairs import (
    all_tie,
    extreme_pairs,
    objectives_conflict,
    pair_weights,
    sample_routes,
    scalarized_pair_weights,
)

SCORES = torch.tensor(
    [
        [[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]],  # y1, y2, tie
        [[3.0, 3.0, 3.0], [1.0, 1.0, 1.0]],  # y1 everywhere
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]],  # all tied
        [[0.0, 0.0, 1.0], [0.0, 0.0, 9.0]],  # tie, tie, y2
    ]
)
PREFERENCE = torch.tensor([[0.2, 0.3, 0.5]]).expand(4, 3)


def test_weights_follow_the_objectives_and_ties_count_in_neither() -> None:
    weight_y1, weight_y2 = pair_weights(SCORES, PREFERENCE)
    torch.testing.assert_close(weight_y1, torch.tensor([0.2, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(weight_y2, torch.tensor([0.3, 0.0, 0.0, 0.5]))


def test_exchanging_the_responses_exchanges_the_weights() -> None:
    weight_y1, weight_y2 = pair_weights(SCORES, PREFERENCE)
    swapped_y1, swapped_y2 = pair_weights(SCORES.flip(1), PREFERENCE)
    assert torch.equal(weight_y1, swapped_y2) and torch.equal(weight_y2, swapped_y1)


def test_only_the_order_of_scores_matters() -> None:
    rescaled = 7 * SCORES - 3
    for before, after in zip(pair_weights(SCORES, PREFERENCE), pair_weights(rescaled, PREFERENCE), strict=True):
        assert torch.equal(before, after)


def test_the_scalarized_rule_gives_all_weight_to_the_higher_weighted_score() -> None:
    weight_y1, weight_y2 = scalarized_pair_weights(SCORES, PREFERENCE)
    assert weight_y1.tolist() == [0.0, 1.0, 0.0, 0.0]  # .2 + 1 < .3 + 1
    assert weight_y2.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_at_a_one_hot_preference_both_rules_agree() -> None:
    scores = torch.randn(300, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    one_hot = torch.eye(3, dtype=torch.float64).repeat(100, 1)
    for scalarized, per_objective in zip(
        scalarized_pair_weights(scores, one_hot), pair_weights(scores, one_hot), strict=True
    ):
        assert torch.equal(scalarized, per_objective)


def test_conflict_needs_two_objectives_with_different_winners() -> None:
    assert objectives_conflict(SCORES).tolist() == [True, False, False, False]


def test_tie_means_every_objective_ties() -> None:
    assert all_tie(SCORES).tolist() == [False, False, True, False]


def test_each_objective_pairs_its_best_response_with_its_worst() -> None:
    scores = torch.tensor(
        [
            [[3.0, 0.0, 1.0], [1.0, 5.0, 1.0], [2.0, 2.0, 1.0]],  # 0 over 1, 1 over 0, tie
            [[0.0, 0.0, 9.0], [1.0, 1.0, 5.0], [2.0, 2.0, 0.0]],  # 2 over 0, 2 over 0, 0 over 2
            [[0.0, 2.0, 4.0], [1.0, 1.0, 5.0], [2.0, 0.0, 6.0]],  # weight 0, 0 over 2, 2 over 0
            [[7.0, 7.0, 7.0]] * 3,
        ]
    )
    preference = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.0, 0.4, 0.6], [0.2, 0.3, 0.5]])
    config = LearnerConfig()
    pairs = METHODS["mi-epo"].choose_pairs(scores, preference, config, seed=0)
    assert pairs.prompt.tolist() == [0, 1, 2, 3]
    assert pairs.responses.tolist() == [[0, 1], [0, 2], [0, 2], [0, 1]]
    torch.testing.assert_close(pairs.weight_y1, torch.tensor([0.2, 0.5, 0.4, 0.0]))
    torch.testing.assert_close(pairs.weight_y2, torch.tensor([0.3, 0.5, 0.6, 0.0]))


def test_objectives_with_different_extremes_make_a_pair_each() -> None:
    scores = torch.tensor([[[3.0, 1.0], [1.0, 2.0], [2.0, 0.0]]])
    preference = torch.tensor([[0.3, 0.7]])
    pairs = METHODS["mi-epo"].choose_pairs(scores, preference, LearnerConfig(), seed=0)
    assert (pairs.prompt.tolist(), pairs.responses.tolist()) == ([0, 0], [[0, 1], [1, 2]])
    torch.testing.assert_close(pairs.weight_y1, torch.tensor([0.3, 0.7]))
    assert pairs.weight_y2.tolist() == [0.0, 0.0]
    assert METHODS["mi-epo"].pairs_per_prompt(3, 2) == 2
    assert METHODS["mi-epo"].pairs_per_prompt(2, 5) == METHODS["mo-odpo"].pairs_per_prompt(8, 5) == 1
    scalarized = METHODS["mo-odpo"].choose_pairs(scores, preference, LearnerConfig(), seed=0)
    assert scalarized.responses.tolist() == [[1, 2]] and scalarized.weight_y1.tolist() == [1.0]  # 1.6, 1.7, 0.6


def test_two_responses_are_one_pair_whatever_the_scores() -> None:
    scores = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0)).round(decimals=0)
    preference = torch.tensor([[0.2, 0.3, 0.5]]).expand(200, 3)
    prompt, responses, own = extreme_pairs(scores, preference)
    assert prompt.tolist() == list(range(200)) and responses.tolist() == [[0, 1]] * 200
    for chosen, direct in zip(pair_weights(scores, own), pair_weights(scores, preference), strict=True):
        assert torch.equal(chosen, direct)


def test_of_many_responses_two_objectives_conflict_when_their_best_differ() -> None:
    scores = torch.tensor(
        [
            [[3.0, 1.0], [2.0, 2.0], [1.0, 0.0]],
            [[3.0, 2.0], [2.0, 1.0], [1.0, 0.0]],
            [[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]],
        ]
    )
    assert objectives_conflict(scores).tolist() == [True, False, False]
    assert all_tie(scores).tolist() == [False, False, False]


def test_an_empty_batch_gives_empty_weights() -> None:
    weight_y1, weight_y2 = pair_weights(torch.zeros(0, 2, 3), torch.zeros(0, 3))
    assert weight_y1.shape == weight_y2.shape == (0,)


@pytest.mark.parametrize(
    ("scores", "preference", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 3), r"scores must be \[B, N, K\] with N >= 2, got \[4, 3\]"),
        (torch.zeros(4, 3, 3), torch.zeros(4, 3), r"scores must be \[B, 2, K\], got \[4, 3, 3\]"),
        (torch.zeros(4, 2, 3), torch.zeros(4, 2), r"preference must be \[B, K\] = \[4, 3\], got \[4, 2\]"),
        (torch.tensor([[[0.0], [float("nan")]]]), torch.ones(1, 1), r"scores\[0, 1, 0\] must be finite, got nan"),
    ],
)
def test_wrong_arguments_are_named(scores: torch.Tensor, preference: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_weights(scores, preference)


def test_a_difference_up_to_the_margin_is_a_tie_under_both_rules() -> None:
    scores = torch.tensor([[[1.0, 0.0], [0.5, 0.2]]])
    preference = torch.tensor([[0.6, 0.4]])
    assert pair_weights(scores, preference, min_margin=0.3)[0].tolist() == pytest.approx([0.6])
    assert pair_weights(scores, preference, min_margin=0.3)[1].tolist() == [0.0]
    assert scalarized_pair_weights(scores, preference)[0].tolist() == [1.0]  # .6 against .38
    assert scalarized_pair_weights(scores, preference, min_margin=0.3)[0].tolist() == [0.0]


def test_sampled_routes_are_one_hot_and_average_to_the_preference() -> None:
    preference = torch.tensor([[0.2, 0.8, 0.0]], dtype=torch.float64).repeat(4000, 1)
    routes = sample_routes(preference, torch.Generator().manual_seed(0))
    assert set(routes.sum(-1).tolist()) == {1.0}
    torch.testing.assert_close(routes.mean(0), preference[0], atol=0.03, rtol=0)


def test_the_method_applies_margin_and_routing_as_the_recipe_says() -> None:
    scores = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(500, 1, 1)
    preference = torch.tensor([[0.3, 0.7]], dtype=torch.float64).repeat(500, 1)

    def weights(method: str, **settings: object) -> list[float]:
        config = LearnerConfig.model_validate(settings)
        return METHODS[method].choose_pairs(scores, preference, config, seed=1).weight_y1.tolist()

    assert set(weights("mi-epo")) == {0.3}
    routed = weights("mi-epo", routing="sampled")
    assert set(routed) == {0.0, 1.0} and sum(routed) / 500 == pytest.approx(0.3, abs=0.07)
    assert set(weights("mi-epo", min_margin=1.0)) == {0.0}
    assert set(weights("mo-odpo", routing="sampled")) == {0.0}
