"""Methods beside the paper's: a label or loss of each by hand, and a setting under which it is another one."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from learner_ranks import method
from test_methods import WORK, evaluated, group_of, label

from learner.methods import METHODS, make_method
from learner.methods.f_dpg import pseudo_reward
from learner.methods.gradient_weights import by_influence
from learner.methods.grpo import Advantages
from learner.methods.mgda import min_norm
from learner.methods.modpo import modpo_loss
from learner.methods.ranked import lipo_lambda_loss
from learner.methods.tchebycheff import shortfall
from rewards.normalize import Normalizer


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_finite_loss_with_a_gradient_of_an_ordinary_batch(name):
    made = make_method(method(name))
    scores = [[1, 0.2], [0.1, 0.9], [0.6, 0.7], [0.5, 0.1], [0, 0], [0.3, 0.3], [0.2, 0.1], [0.4, 0.5]]
    groups = [group_of(scores, [0.3, 0.7], seed) for seed in range(3)]
    examples = made.batch(groups)
    assert examples
    at = evaluated(examples)
    output = made.loss(at)
    output.loss.backward()
    assert output.loss.isfinite() and at.logprob.grad is not None
    assert at.logprob.grad.isfinite().all() and at.logprob.grad.abs().sum() > 0
    assert "loss" in output.metrics and not any(value.requires_grad for value in output.metrics.values())
    responses = made.responses_per_example(8, 2)
    assert max(len(example.responses) for example in examples) <= responses
    assert len(examples) <= 3 * made.examples_per_prompt(8)


# reward-consistency


def test_only_a_pair_that_no_asked_objective_opposes_is_learned_from_and_the_widest_wins():
    scores = [[3, 1], [1, 2], [2, 0], [0, 0.5]]  # 0 beats 2 and 3, 1 beats 3
    targets = label("reward-consistency", scores, [0.5, 0.5])
    assert targets.responses == ((0, 3),)  # gaps 3 and .5, wider than 1 and 1
    assert targets.weight.tolist() == [[[0.5, 0], [0.5, 0]]]
    swapped = label("reward-consistency", [scores[3], scores[0]], [0.5, 0.5])
    assert swapped.responses == ((0, 1),) and swapped.weight.tolist() == [[[0, 0.5], [0, 0.5]]]
    made = make_method(method("reward-consistency"))
    assert made.examples(group_of([[1, 0], [0, 1]], [0.5, 0.5])) == []


def test_at_a_one_hot_w_reward_consistency_is_mo_odpo():
    for seed in range(5):
        scores = np.random.default_rng(seed).normal(size=(4, 3))
        for w in np.eye(3):
            own, other = (label(name, scores, w) for name in ("reward-consistency", "mo-odpo"))
            assert own.responses == other.responses
            assert own.weight.sum((0, 1)).tolist() == other.weight.sum((0, 1)).tolist()


# modpo


def test_the_other_objectives_are_a_margin_that_one_objectives_winner_must_beat():
    made = make_method(method("modpo"))
    group = group_of([[2.0, 0.5], [1.0, 3.0]], [0.8, 0.2], seed=0)
    [example] = made.examples(group)
    j = int(np.random.default_rng(0).choice(2, p=[0.8, 0.2]))
    winner, loser = (0, 1) if j == 0 else (1, 0)
    assert example.responses == (group.responses[winner], group.responses[loser])
    gap = group.scores[winner] - group.scores[loser]
    assert example.targets.scale == pytest.approx(1 / group.preference[j])
    assert example.targets.margin == pytest.approx(group.preference[1 - j] * gap[1 - j])


def test_modpos_loss_is_the_value_by_hand_and_without_a_margin_dpos():
    output = modpo_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([1.25]), torch.tensor([-0.5]), beta=0.1)
    assert output.loss.item() == pytest.approx(-math.log(sigmoid(1.25 * (0.3 + 0.5))), rel=1e-5)
    group = group_of([[1, 0], [0, 1]], [1.0, 0.0])
    own, plain = (make_method(method(name)) for name in ("modpo", "mo-odpo"))
    losses = [each.loss(evaluated(each.examples(group))).loss.item() for each in (own, plain)]
    assert losses[0] == pytest.approx(losses[1])


def test_an_objective_that_ties_makes_no_pair_and_a_small_weight_no_huge_scale():
    made = make_method(method("modpo", least_weight=0.2))
    assert made.examples(group_of([[1, 0], [1, 1]], [1.0, 0.0])) == []
    routes = [made.label(group_of([[1, 0], [0, 1]], [0.95, 0.05], seed)) for seed in range(200)]
    assert max(targets.scale for targets in routes if targets is not None) == 5.0


# cpo


def test_the_response_nearest_to_the_levels_that_w_asks_for_wins():
    targets = label("cpo", [[0.9, 0.2], [0.7, 0.7], [0.1, 0.9]], [0.5, 0.5])  # levels .707 each
    assert targets.responses == ((1, 2),) and targets.weight.tolist() == [[[1, 0]]]
    tilted = label("cpo", [[0.8, 0.6], [1.0, 1.0]], [4 / 7, 3 / 7])  # levels .8, .6: better is not nearer
    assert tilted.weight.tolist() == [[[1, 0]]]
    unasked = label("cpo", [[0.9, 0.1], [0.8, 0.9]], [1.0, 0.0])  # -.1 + .1 against -.2 + .9
    assert unasked.weight.tolist() == [[[0, 1]]]


# max-min


def test_every_pair_of_a_batch_is_decided_by_the_objective_that_is_worst_off():
    made = make_method(method("max-min"))
    groups = [group_of([[-1, 0], [-2, 1]], [1.0, 0.0]), group_of([[3, -2], [6, -1]], [0.5, 0.5])]  # the first's own: 1
    examples = made.batch(groups)
    assert [example.targets.weight.tolist() for example in examples] == [[[[0, 1]]], [[[0, 1]]]]
    assert [example.preference for example in examples] == [(1.0, 0.0), (0.5, 0.5)]
    assert made.batch([]) == []


# lipo-lambda, listwise


def test_lipos_loss_of_three_responses_by_hand():
    logratio, worth = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])  # ranks 2, 3, 1
    discount = [1 / math.log(3), 1 / math.log(4), 1 / math.log(2)]
    expected = -(abs(discount[0] - discount[1]) * math.log(sigmoid(0.5)))
    expected -= abs(discount[0] - discount[2]) * math.log(sigmoid(-0.5))
    assert lipo_lambda_loss(0.5 * logratio, worth).item() == pytest.approx(expected, rel=1e-5)
    assert lipo_lambda_loss(0.5 * logratio, torch.ones(3)).item() == 0


def test_lipo_with_two_responses_is_dpo_with_a_weight():
    group = group_of([[1, 0], [0, 1]], [0.8, 0.2])
    own, plain = (make_method(method(name)) for name in ("lipo-lambda", "mo-odpo"))
    delta = abs(2**0.8 - 2**0.2) * abs(1 / math.log(2) - 1 / math.log(3))
    losses = [each.loss(evaluated(each.examples(group))).loss.item() for each in (own, plain)]
    assert losses[0] == pytest.approx(delta * losses[1], rel=1e-5)


def test_the_listwise_targets_are_the_objectives_softmaxes_mixed_by_w():
    made = make_method(method("listwise"))
    targets = made.label(group_of([[math.log(3), 0], [0, 0]], [0.6, 0.4]))
    assert targets is not None
    assert targets.worth == pytest.approx((0.6 * 0.75 + 0.4 * 0.5, 0.6 * 0.25 + 0.4 * 0.5))


def test_listwise_with_two_responses_and_no_temperature_is_per_objective_dpo():
    group = group_of([[1, 0], [0, 1]], [0.3, 0.7])
    own = make_method(method("listwise", temperature=1e-3))
    plain = make_method(method("mo-odpo-per-objective"))
    losses = [each.loss(evaluated(each.examples(group))).loss.item() for each in (own, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# mgda


def mixed(gram: np.ndarray, weight: list[float]) -> np.ndarray:
    """[K] <g_k, update>, for the Gram matrix of the g_k."""
    w = np.array(weight)
    return gram @ (w * min_norm(gram * np.outer(w, w), w))


def test_no_objective_is_moved_backwards_and_each_moves_by_its_weight():
    gram = np.array([[4.0, -1.0], [-1.0, 1.0]])
    for weight in ([0.5, 0.5], [0.9, 0.1], [0.2, 0.8]):
        gains = mixed(gram, weight)
        assert (gains > 0).all() and gains[0] / gains[1] == pytest.approx(weight[0] / weight[1], rel=1e-4)
    opposed = mixed(np.array([[1.0, -1.0], [-1.0, 1.0]]), [0.5, 0.5])
    np.testing.assert_allclose(opposed, 0, atol=1e-6)


def test_orthogonal_gradients_of_one_length_are_added_up_as_they_are():
    np.testing.assert_allclose(min_norm(np.eye(3) / 9, np.full(3, 1 / 3)), np.ones(3), atol=1e-6)
    uneven = np.array([0.9, 0.1])
    coefficients = min_norm(np.diag(uneven**2), uneven)
    assert coefficients[0] == pytest.approx(coefficients[1])


@pytest.mark.parametrize("gram", [np.diag([2.0, 0.0]), np.diag([4.0, 1e-16]), np.zeros((2, 2))])
def test_who_has_no_gradient_does_not_hold_up_the_others(gram):
    assert min_norm(gram, np.array([0.5, 0.5]))[0] >= 1


# policy gradients


def advantages(name, scores, preference, **settings):
    targets = make_method(method(name, **settings)).label(group_of(scores, preference))
    assert isinstance(targets, Advantages)
    return targets.advantage


def test_rloo_compares_with_the_other_responses_and_reinforce_with_nothing():
    scores = [[3, 0], [1, 1], [2, 2]]  # 1.5, 1, 2
    assert advantages("rloo", scores, [0.5, 0.5]) == pytest.approx((1.5 - 1.5, 1 - 1.75, 2 - 1.25))
    assert advantages("reinforce", scores, [0.5, 0.5]) == pytest.approx((1.5, 1, 2))


def test_grpo_standardises_each_objective_or_their_sum():
    scores = [[0, 10], [2, 30], [4, 20]]  # sums 5, 16, 12
    by_sum = advantages("grpo", scores, [0.5, 0.5], normalize="sum")
    assert by_sum == pytest.approx(((5 - 11) / math.sqrt(31), 5 / math.sqrt(31), 1 / math.sqrt(31)))
    both = [advantages("grpo", scores, [0.0, 1.0], normalize=how) for how in ("objectives", "sum")]
    assert both[0] == pytest.approx(both[1])


def test_pama_gives_a_response_what_its_least_served_objective_gains():
    scores = [[1, 5], [2, 4], [3, 3], [6, 0]]  # means 3, 3: whoever gains in one loses in the other
    spread = np.std(scores, axis=0, ddof=1)
    assert advantages("pama", scores, [0.5, 0.5]) == pytest.approx((0, 0, 0, 0))
    assert advantages("pama", [[1, 1], [5, 4]], [0.2, 0.8]) == pytest.approx((0, math.sqrt(0.5)))
    whole = advantages("pama", scores, [0.5, 0.5], credit="batch")
    assert whole == pytest.approx([min(3 / spread[0], 3 / spread[1]) / 4] * 4)
    assert advantages("pama", scores, [1.0, 0.0]) == pytest.approx((0, 0, 0, 3 / spread[0]))


def test_a_tie_has_no_advantage_whatever_its_mean_rounds_to():
    tied = [[0.1, 0.3]] * 3
    for settings in ({}, {"normalize": "sum"}):
        assert advantages("grpo", tied, [0.5, 0.5], **settings) == (0, 0, 0)
    eight = np.random.default_rng(0).normal(size=(8, 2))
    eight[:, 0] = -1.23
    own = advantages("grpo", eight, [0.9, 0.1])
    assert np.mean(own) == pytest.approx(0, abs=1e-9) and max(map(abs, own)) < 0.3
    assert advantages("pama", eight, [0.9, 0.1]) == (0,) * 8


def test_a_policy_gradient_needs_responses_that_differ():
    greedy = dataclasses.replace(WORK, temperature=0.0)
    assert list(make_method(method("reinforce")).problems(greedy)) == [
        "rollout.temperature must be above 0 for a policy gradient, got 0"
    ]


# f-dpg


def test_what_the_target_prefers_is_made_likelier():
    group = group_of([[2, 0], [0, 0]], [1.0, 0.0])
    for divergence in ("reverse-kl", "forward-kl", "js"):
        made = make_method(method("f-dpg", divergence=divergence))
        at = evaluated(made.examples(group))
        made.loss(at).loss.backward()
        assert at.logprob.grad is not None
        reward = pseudo_reward(at.logratio().detach(), torch.tensor([20.0, 0.0]), divergence)
        np.testing.assert_allclose(at.logprob.grad.view(2, 2), -reward[:, None].expand(2, 2) / 2, rtol=1e-5)
        assert reward[0] > 0 > reward[1]


def test_at_the_target_nothing_moves_under_any_divergence():
    logratio = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
    for divergence in ("reverse-kl", "forward-kl", "js"):
        np.testing.assert_allclose(pseudo_reward(logratio, logratio + 2, divergence), 0, atol=1e-12)


def test_under_reverse_kl_the_reward_is_that_of_rlhf():
    wide = pseudo_reward(torch.zeros(4), torch.tensor([0.0, -11.0, -20.0, -40.0]), "reverse-kl")
    np.testing.assert_allclose(wide, [17.75, 6.75, -2.25, -22.25])
    energy, logratio = torch.tensor([4.0, 1.0]), torch.tensor([0.5, -0.5])
    np.testing.assert_allclose(pseudo_reward(logratio, energy, "reverse-kl"), [1.0, -1.0])  # 3.5 and 1.5, mean 2.5
    shares = np.exp([3.5, 1.5]) / np.exp([3.5, 1.5]).mean()
    np.testing.assert_allclose(pseudo_reward(logratio, energy, "forward-kl"), shares - shares.mean(), rtol=1e-5)
    js = [math.log1p(share) for share in shares]
    np.testing.assert_allclose(pseudo_reward(logratio, energy, "js"), np.array(js) - np.mean(js), rtol=1e-5)


# imitation


def test_dpa_imitates_the_response_that_is_worth_most_in_the_asked_direction():
    made = make_method(method("dpa"))
    [example] = made.examples(group_of([[3, 0], [1, 1], [0, 4]], [0.3, 0.7]))
    assert example.responses == ((32, 1),) and example.prompts == ((20, 21),)
    assert made.examples(group_of([[1, 0], [0, 1]], [0.5, 0.5])) == []


def test_uc_moa_imitates_a_response_under_a_utility_by_which_it_is_best():
    made = make_method(method("uc-moa", power=1.0))
    scores = [[0.9, 0.1], [0.2, 0.8], [0.1, 0.05]]
    asked: dict[tuple[int, ...], set[float]] = {}
    for seed in range(60):
        for example in made.examples(group_of(scores, [0.5, 0.5], seed)):
            weight = example.preference[0]
            asked.setdefault(example.responses[0], set()).add(weight)
            assert example.prompts[0] == (40, int(10 * weight), int(10 * example.preference[1]))
    assert asked.keys() == {(30, 1), (31, 1)}  # the third is best by none
    # by the first w .7 w (1 - w) ... the two are worth the same at w = .5
    assert asked[30, 1] == {0.5, 0.6, 0.7, 0.8, 0.9, 1.0} and asked[31, 1] == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}


def test_scores_are_seen_on_the_scale_that_is_asked_for():
    base = Normalizer.fit(("a", "b"), np.arange(20.0).reshape(10, 2))  # a: 0, 2, ... 18
    good, mean, spread = np.quantile(np.arange(0, 20, 2.0), 0.85), 9.0, np.std(np.arange(0, 20, 2.0), ddof=1)
    for scale, expected in (("standard", (18 - mean) / spread), ("quantile", 1.0)):
        seen = make_method(method("mo-odpo", scores=scale)).transform(np.array([[18.5, 0.0]]), base)
        assert seen[0, 0] == pytest.approx(expected, abs=0.1)
    seen = make_method(method("rloo", scores="log-sigmoid")).transform(np.array([[good, -1e9]]), base)
    assert seen[0, 0] == pytest.approx(-math.log(2), abs=0.01) and np.isfinite(seen).all()
    with pytest.raises(ValueError, match="scores"):
        method("ric", scores="standard")


def test_levels_are_what_cpo_and_uc_moa_see():
    base = Normalizer.fit(("a", "b"), np.arange(20.0).reshape(10, 2))
    for name in ("cpo", "uc-moa", "ric"):
        seen = make_method(method(name)).transform(np.array([[-1.0, 99.0]]), base)
        assert seen.tolist() == [[0.0, 1.0]]


# tchebycheff


def test_tchebycheffs_winner_lacks_least_where_the_weighted_sum_would_take_an_extreme():
    scores = [[2, 0], [0, 2], [0.9, 0.9]]  # a hollow front: the sum is 1, 1 and .9
    targets = label("tchebycheff", scores, [0.5, 0.5])
    (best, worst) = targets.responses[0] if targets.weight[0, 0, 0] else targets.responses[0][::-1]
    assert best == 2 and worst in (0, 1)  # it lacks 1.05, the others 1.5
    assert label("mo-odpo", scores, [0.5, 0.5]).responses == ((0, 2),)
    evenly, one_sided = [0.5, 0.5], [1.4, -0.3]  # of two responses alone: sums .5 and .55
    assert label("mo-odpo", [evenly, one_sided], [0.5, 0.5]).weight.tolist() == [[[0.0, 1.0]]]
    assert label("tchebycheff", [evenly, one_sided], [0.5, 0.5]).weight.tolist() == [[[1.0, 0.0]]]


def test_what_is_lacking_is_the_largest_weighted_distance_to_the_ideal_and_smoothing_bounds_it():
    scores, w = np.array([[1.0, 0.0, 5.0], [0.0, 2.0, -5.0]]), np.array([0.25, 0.75, 0.0])
    assert shortfall(scores, w, ideal=3.0, smoothing=0.0).tolist() == [2.25, 0.75]
    smooth = shortfall(scores, w, ideal=3.0, smoothing=0.5)
    assert smooth == pytest.approx(
        [0.5 * math.log(math.exp(1) + math.exp(4.5)), 0.5 * math.log(math.exp(1.5) + math.exp(1.5))]
    )
    assert shortfall(scores, w, ideal=3.0, smoothing=1e-6) == pytest.approx([2.25, 0.75], abs=1e-5)


def test_at_a_one_hot_w_tchebycheff_is_mo_odpo():
    for seed in range(5):
        scores = np.random.default_rng(seed).normal(size=(4, 3))
        for w in np.eye(3):
            ours, theirs = (label(name, scores, w) for name in ("tchebycheff", "mo-odpo"))
            assert ours.responses == theirs.responses and (ours.weight == theirs.weight).all()


# gradient-weights


def test_an_objective_weighs_more_by_its_share_of_the_common_gradient():
    g = np.array([[2.0, 0.0], [0.0, 1.0]])  # influences 4/5 and 1/5
    w = np.array([0.25, 0.75])
    gram = (w[:, None] * g) @ (w[:, None] * g).T
    grown = w * np.exp([0.8, 0.2])
    assert by_influence(gram, w, rate=1.0) == pytest.approx(grown / grown.sum() / w)


def test_without_a_rate_or_with_equal_influence_nothing_is_reweighed():
    rng = np.random.default_rng(0)
    g, w = rng.normal(size=(3, 5)), np.array([0.2, 0.3, 0.5])
    gram = (w[:, None] * g) @ (w[:, None] * g).T
    assert by_influence(gram, w, rate=0.0) == pytest.approx(np.ones(3))
    assert by_influence(np.outer(w, w), w, rate=5.0) == pytest.approx(np.ones(3))


def test_an_objective_that_nobody_asks_for_or_without_gradients_keeps_its_coefficient():
    gram = np.array([[0.49, 0.0], [0.0, 0.0]])
    assert by_influence(gram, np.array([0.7, 0.0]), rate=2.0) == pytest.approx([1.0, 1.0])
    assert by_influence(np.zeros((2, 2)), np.array([0.5, 0.5]), rate=2.0) == pytest.approx([1.0, 1.0])


def test_gradients_that_oppose_each_other_hardly_change_the_weights():
    g, w = np.array([[1.0, 0.0], [-0.9 * 0.999, 0.9 * (1 - 0.999**2) ** 0.5]]), np.array([0.5, 0.5])
    gram = (w[:, None] * g) @ (w[:, None] * g).T
    first, second = by_influence(gram, w, rate=1.0)
    assert 1 < first < 1.1 and 0.9 < second < 1
