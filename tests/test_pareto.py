"""The metrics against brute force, and the properties they must have."""

import itertools

import numpy as np
import pytest

from rewards.pareto import (
    conditional_covariance,
    conditional_reward_dispersion,
    hypervolume,
    igd_plus,
    information_nats,
    kendall_tau,
    mean_inner_product,
    neighbour_overlap,
    nondominated,
    sparsity,
    spearman,
    steering_gap,
)


def inclusion_exclusion(points, reference):
    """Volume of a union of boxes: the sum over subsets of the volume of their intersection, with alternating signs."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            corner = np.min(subset, axis=0)
            total += (-1) ** (size + 1) * np.prod(np.maximum(corner - reference, 0))
    return total


def test_hypervolume_of_known_fronts():
    assert hypervolume([[0, 0]], [-3, -3]) == pytest.approx(9)
    assert hypervolume([[2, 1], [1, 2]], [0, 0]) == pytest.approx(3)
    assert hypervolume([[2.0], [5.0], [1.0]], [1.0]) == pytest.approx(4)
    assert hypervolume([[1, 1, 1]], [-3, -3, -3]) == pytest.approx(64)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_hypervolume_equals_inclusion_and_exclusion(k):
    rng = np.random.default_rng(k)
    for _ in range(20):
        points, reference = rng.normal(size=(7, k)), rng.normal(size=k) - 1
        assert hypervolume(points, reference) == pytest.approx(inclusion_exclusion(points, reference), abs=1e-9)


def test_hypervolume_agrees_with_monte_carlo():
    rng = np.random.default_rng(0)
    points, reference = rng.normal(size=(13, 3)), np.full(3, -3.0)
    samples = rng.uniform(reference, points.max(0), size=(100_000, 3))
    covered = np.zeros(len(samples), dtype=bool)
    for point in points:
        covered |= (samples <= point).all(1)
    estimate = covered.mean() * np.prod(points.max(0) - reference)
    assert hypervolume(points, reference) == pytest.approx(estimate, rel=0.02)


@pytest.mark.parametrize("k", [2, 3])
def test_hypervolume_never_falls_when_a_point_is_added_and_a_dominated_point_adds_nothing(k):
    rng = np.random.default_rng(k)
    reference = np.full(k, -3.0)
    points = rng.normal(size=(1, k))
    for _ in range(15):
        before = hypervolume(points, reference)
        dominated = points[rng.integers(len(points))] - rng.uniform(0.01, 0.5, size=k)
        assert hypervolume(np.vstack([points, dominated]), reference) == pytest.approx(before)
        points = np.vstack([points, rng.normal(size=k)])
        assert hypervolume(points, reference) >= before - 1e-12


def test_points_not_above_the_reference_and_unmeasured_points_add_nothing():
    assert hypervolume([[-5, 9], [0, -3], [-3, 0]], [-3, -3]) == 0
    assert hypervolume([[1, 1], [-5, 9], [np.nan, 2]], [0, 0]) == pytest.approx(1)
    assert hypervolume(np.empty((0, 2)), [0, 0]) == 0
    with pytest.raises(ValueError, match="reference must be 2 finite numbers"):
        hypervolume([[1, 1]], [0])


def test_nondominated_equals_the_definition():
    rng = np.random.default_rng(1)
    for _ in range(20):
        points = rng.integers(0, 4, size=(12, 3)).astype(float)
        expected = [not any((other >= point).all() and (other > point).any() for other in points) for point in points]
        assert nondominated(points).tolist() == expected
    assert nondominated([[1, 1], [1, 1], [np.nan, 9]]).tolist() == [True, True, False]


def test_only_nondominated_points_carry_hypervolume():
    points = np.random.default_rng(5).normal(size=(30, 3))
    reference = np.full(3, -4.0)
    assert hypervolume(points[nondominated(points)], reference) == pytest.approx(hypervolume(points, reference))


def test_mean_inner_product_equals_the_loop():
    rng = np.random.default_rng(2)
    preferences, points = rng.dirichlet(np.ones(3), size=11), rng.normal(size=(11, 3))
    expected = (
        sum(sum(w * s for w, s in zip(*rows, strict=True)) for rows in zip(preferences, points, strict=True)) / 11
    )
    assert mean_inner_product(preferences, points) == pytest.approx(expected)
    assert np.isnan(mean_inner_product([[1.0, 0.0]], [[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="one shape"):
        mean_inner_product(preferences, points[:5])


def test_dispersion_equals_the_loop():
    scores = np.random.default_rng(3).normal(size=(5, 40, 2)) * [1, 3]
    expected = []
    for rows in scores:
        centred = rows - rows.mean(0)
        (a, b), (c, d) = centred.T @ centred / (len(rows) - 1)
        expected.append(a * d - b * c)
    assert conditional_reward_dispersion(scores) == pytest.approx(np.mean(expected))


def test_dispersion_of_one_objective_is_the_variance_and_of_copies_zero():
    scores = np.random.default_rng(4).normal(size=(3, 50, 1))
    assert conditional_reward_dispersion(scores) == pytest.approx(scores[..., 0].var(axis=1, ddof=1).mean())
    assert conditional_reward_dispersion(np.repeat(scores, 2, axis=2)) == pytest.approx(0, abs=1e-12)
    assert conditional_reward_dispersion(np.ones((2, 5, 2))) == 0


def test_dispersion_leaves_out_incomplete_responses_and_unmeasurable_vectors():
    scores = np.random.default_rng(6).normal(size=(2, 30, 2))
    holed = np.concatenate([scores, np.full((2, 3, 2), np.nan)], axis=1)
    holed[:, -1, 0] = 1.0
    assert conditional_reward_dispersion(holed) == pytest.approx(conditional_reward_dispersion(scores))
    lonely = np.full((1, 33, 2), np.nan)
    lonely[0, 0] = 1.0
    assert np.isnan(conditional_covariance(lonely)).all()
    assert conditional_reward_dispersion(np.concatenate([holed, lonely])) == pytest.approx(
        conditional_reward_dispersion(scores)
    )
    assert np.isnan(conditional_reward_dispersion(lonely))


def slow_spearman(x, y):
    """Pearson correlation of ranks, each the mean of the places its value takes."""

    def ranks(values):
        ordered = sorted(values)
        return [np.mean([place for place, other in enumerate(ordered) if other == value]) for value in values]

    rx, ry = np.array(ranks(x)), np.array(ranks(y))
    rx, ry = rx - rx.mean(), ry - ry.mean()
    return (rx * ry).sum() / np.sqrt((rx**2).sum() * (ry**2).sum())


def test_spearman_equals_the_definition_with_ties():
    rng = np.random.default_rng(7)
    preferences = rng.integers(0, 5, size=(13, 3)) / 10
    points = rng.integers(0, 6, size=(13, 3)).astype(float)
    expected = [slow_spearman(preferences[:, k], points[:, k]) for k in range(3)]
    np.testing.assert_allclose(spearman(preferences, points), expected)


def test_spearman_depends_on_order_alone():
    weights = np.linspace(0, 1, 11)
    preferences = np.stack([weights, 1 - weights], axis=1)
    points = np.stack([np.exp(5 * weights), -(weights**3)], axis=1)
    np.testing.assert_allclose(spearman(preferences, points), [1, 1])
    np.testing.assert_allclose(spearman(preferences, -points), [-1, -1])


def test_spearman_of_constants_is_defined():
    preferences = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    assert spearman(preferences, np.ones((3, 2))).tolist() == [0, 0]
    assert np.isnan(spearman([[1.0]], [[2.0]])).all()
    assert np.isnan(spearman([[1.0], [1.0]], [[2.0], [3.0]])).all()
    holed = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, 4.0]])
    np.testing.assert_allclose(spearman(preferences, holed), [-1, -1])


def test_nobody_would_gain_by_other_weights_where_the_steering_gap_is_zero():
    weights = np.array([[1, 0], [0.5, 0.5], [0, 1]])
    assert steering_gap(weights, [[2, -2], [1, 1], [-2, 2]]) == pytest.approx(0)
    assert steering_gap(weights, [[-2, 2], [1, 1], [2, -2]]) == pytest.approx((4 + 0 + 4) / 3)
    assert np.isnan(steering_gap(weights, [[np.nan, 0], [1, 1], [2, 2]]))


def test_igd_plus_counts_only_what_is_missing():
    front = [[2.0, 0.0], [0.0, 2.0]]
    assert igd_plus([[2, 0], [0, 2]], front) == pytest.approx(0)
    assert igd_plus([[5, 5]], front) == pytest.approx(0)
    assert igd_plus([[1, 1]], front) == pytest.approx(1)
    rng = np.random.default_rng(0)
    points, targets = rng.normal(size=(6, 3)), rng.normal(size=(9, 3))
    expected = np.mean([min(np.linalg.norm(np.maximum(r - s, 0)) for s in points) for r in targets])
    assert igd_plus(points, targets) == pytest.approx(expected)
    assert np.isnan(igd_plus([[np.nan, 1]], [[1.0, 1.0]]))


def test_sparsity_is_the_squared_step_along_the_front_and_dominated_points_do_not_count():
    assert sparsity([[0, 2], [1, 1], [2, 0], [-1, -1]]) == pytest.approx((1 + 1 + 1 + 1) / 2)
    assert sparsity([[3, 3], [1, 1]]) == 0


def test_equal_reward_distributions_overlap_wholly_and_far_ones_not_at_all():
    weights = [[1, 0], [0.5, 0.5], [0, 1]]
    unit = np.tile(np.eye(2), (3, 1, 1))
    assert neighbour_overlap(weights, np.zeros((3, 2)), unit) == pytest.approx(1)
    assert neighbour_overlap(weights, [[0, 0], [2, 0], [4, 0]], unit) == pytest.approx(np.exp(-4 / 8))
    assert neighbour_overlap(weights, [[0, 0], [99, 0], [198, 0]], unit) < 1e-9
    wider = unit * np.array([1, 4, 1])[:, None, None]
    assert neighbour_overlap(weights, np.zeros((3, 2)), wider) == pytest.approx(2.5**-1 * 2)


def test_kendall_counts_pairs_in_order():
    weights = np.linspace(0, 1, 4)[:, None]
    weights = np.hstack([weights, 1 - weights])
    rewards = np.array([[0, 3], [2, 2], [1, 2], [3, 9]], dtype=float)
    # first objective: 5 of 6 pairs in order; second: weights fall 1..0, rewards 3, 2, 2, 9: +2, -3 and one tie
    assert kendall_tau(weights, rewards) == pytest.approx([(5 - 1) / 6, (2 - 3) / np.sqrt(6 * 5)])
    assert kendall_tau(weights, np.ones((4, 2))).tolist() == [0, 0]
    assert np.isnan(kendall_tau(np.ones((4, 1)), np.ones((4, 1)))).all()


def test_information_is_zero_without_control_and_log_m_with_perfect_control():
    assert information_nats(np.full((5, 4), -30.0), [0, 1, 2, 3, 0]) == pytest.approx(0)
    perfect = np.where(np.eye(4, dtype=bool), -10.0, -900.0)
    assert information_nats(perfect, range(4)) == pytest.approx(np.log(4))
    half = np.log([[0.2, 0.2, 0.6]])
    assert information_nats(half, [2]) == pytest.approx(np.log(0.6 / (1 / 3)))
    with pytest.raises(ValueError, match="own must be"):
        information_nats(half, [0, 1])
