"""Scores to pair weights, conflicts and ties."""

import pytest
import torch

from learner.pairs import all_tie, extreme_pairs, objective_weights, objectives_conflict, pair_weights

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


def test_what_each_objective_adds_is_told_apart() -> None:
    weights = objective_weights(SCORES, PREFERENCE)
    assert weights.shape == (4, 3, 2)
    torch.testing.assert_close(weights[0], torch.tensor([[0.2, 0.0], [0.0, 0.3], [0.0, 0.0]]))


def test_conflict_needs_two_objectives_with_different_winners() -> None:
    assert objectives_conflict(SCORES).tolist() == [True, False, False, False]


def test_tie_means_every_objective_ties() -> None:
    assert all_tie(SCORES).tolist() == [False, False, True, False]


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


def test_a_difference_up_to_the_margin_is_a_tie() -> None:
    scores = torch.tensor([[[1.0, 0.0], [0.5, 0.2]]])
    preference = torch.tensor([[0.6, 0.4]])
    assert pair_weights(scores, preference, min_margin=0.3)[0].tolist() == pytest.approx([0.6])
    assert pair_weights(scores, preference, min_margin=0.3)[1].tolist() == [0.0]
