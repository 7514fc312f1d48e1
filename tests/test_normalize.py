"""The frozen scale of the scores."""

import json

import numpy as np
import pytest

from rewards.normalize import Normalizer, NormalizerError


def test_fitted_scores_have_mean_zero_and_deviation_one():
    scores = np.random.default_rng(0).normal([3, -40], [0.5, 12], size=(200, 2))
    normalizer = Normalizer.fit(("a", "b"), scores)
    normalized = normalizer.apply(scores)
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(normalized.std(0, ddof=1), 1)


def test_incomplete_rows_are_left_out_of_the_fit_and_stay_missing():
    scores = np.array([[1.0, 2.0], [3.0, 6.0], [np.nan, 1e6], [1e6, np.inf]])
    normalizer = Normalizer.fit(("a", "b"), scores)
    assert normalizer.mean == (2.0, 4.0)
    assert np.isnan(normalizer.apply(scores)[2, 0])


def test_leading_dimensions_pass_through():
    normalizer = Normalizer(objectives=("a", "b"), mean=(1.0, 2.0), std=(2.0, 4.0))
    assert normalizer.apply([3.0, 10.0]).tolist() == [1.0, 2.0]
    assert normalizer.apply(np.zeros((5, 2, 3, 2))).shape == (5, 2, 3, 2)


def test_the_record_survives_json():
    normalizer = Normalizer(objectives=("a", "b"), mean=(0.1, 2.0), std=(2.0, 1 / 3))
    assert Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict()))) == normalizer
    with pytest.raises(NormalizerError, match="'std'"):
        Normalizer.from_dict({"objectives": ["a"], "mean": [0.0]})


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([[1.0, 2.0]], "needs 2 responses with every score, got 1 of 1"),
        ([[1.0, np.nan]] * 5, "got 0 of 5"),
        ([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]], "objective 'b' gives all 3 responses the same score 7"),
        ([[1.0], [2.0]], r"expected scores \[N, 2\]"),
    ],
)
def test_a_scale_that_cannot_be_measured_is_refused(scores, words):
    with pytest.raises(NormalizerError, match=words):
        Normalizer.fit(("a", "b"), scores)


def test_scores_of_another_number_of_objectives_are_refused():
    normalizer = Normalizer(objectives=("a", "b"), mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(NormalizerError, match="expected scores"):
        normalizer.apply(np.zeros((4, 3)))
    with pytest.raises(NormalizerError, match="std > 0"):
        Normalizer(objectives=("a",), mean=(0.0,), std=(0.0,))
    with pytest.raises(NormalizerError, match="2 objectives"):
        Normalizer(objectives=("a", "b"), mean=(0.0,), std=(1.0,))
