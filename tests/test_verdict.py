"""The verdict on a training: hand-made evaluations, one for each thing that training can come to."""

import pytest

from orchestrator.bench.verdict import Verdict, judge_training


def side(mip, spearman=(0.97, 0.97), *, audit=None, distinct=1.0, crd=0.36, **more):
    judged = {"mip": audit} if audit is not None else None
    return {"mip": mip, "spearman": list(spearman), "distinct_responses": distinct, "crd": crd, "audit": judged, **more}


START = side(0.26, audit=0.25)


def name(before, after):
    verdict = judge_training(before, after)
    return verdict and verdict.name


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (START, side(0.85, audit=0.75, crd=0.07), "steered"),
        (START, side(0.26, audit=0.26, distinct=0.99), "nothing learned"),
        (START, side(0.30, audit=0.24), "nothing learned"),
        (START, side(0.92, audit=0.20), "judges over-optimised"),
        (START, side(0.92, audit=0.24), "steered"),
        (START, side(0.10, audit=0.10), "worse"),
        (START, side(0.60, (0.30, 0.20), audit=0.4), "not steered"),
        (START, side(0.60, (None, None), audit=0.4), "not steered"),
        (side(0.0, (0.1, 0.1)), side(0.03, (0.8, 0.7)), "steered"),
        (START, side(0.60, (0.3, 0.3), audit=0.4, distinct=0.26, crd=0.0), "collapsed"),
        (START, side(0.60, audit=0.10, distinct=0.26, crd=0.0), "collapsed"),
        (START, side(0.60, (0.3, 0.3), distinct=1.0, crd=0.003), "collapsed"),
        (START, side(0.60, audit=0.6, distinct=1.0, crd=0.003), "steered"),
        (side(0.1, (None,)), side(0.9, (None,), crd=0.3), "improved"),
        (side(0.1, (None,)), side(0.11, (None,)), "nothing learned"),
        (None, side(0.9), "steered"),
        (None, side(0.9, (0.1, 0.2)), "not steered"),
        (None, side(0.9, distinct=0.3), "collapsed"),
        (None, side(0.9, (None,)), None),
    ],
)
def test_each_thing_that_training_can_come_to_is_called_by_its_name(before, after, expected):
    assert name(before, after) == expected


@pytest.mark.parametrize(
    ("samples", "distinct", "expected"),
    [(4, 0.5, "steered"), (4, 0.49, "collapsed"), (2, 0.7, "steered"), (2, 0.6, "collapsed"), (1, 1.0, "steered")],
)
def test_answers_repeat_themselves_by_how_many_there_could_be(samples, distinct, expected):
    assert name(START, side(0.85, distinct=distinct, samples=samples)) == expected


def test_a_change_within_the_interval_of_the_prompts_is_none():
    """Half widths of .3 and .4 over prompts: a change of less than .5 may be the prompts'."""
    before, after = (side(0.26, prompt_intervals={"mip": [0.0, 0.6]}), side(0.7, prompt_intervals={"mip": [0.3, 1.1]}))
    assert name(before, after) == "nothing learned"
    assert name(before, {**after, "mip": 0.8}) == "steered"


def test_it_says_by_what_it_judges():
    verdict = judge_training(START, side(0.6, (0.3, 0.3), distinct=0.26, crd=0.0))
    assert verdict == Verdict(
        name="collapsed", why="distinct responses 100.0% → 26.0%, CRD 0.360 → 0.000, Spearman 0.97 → 0.30"
    )
    exploited = judge_training(START, side(0.92, audit=0.2))
    assert exploited and exploited.line == "judges over-optimised: MIP 0.260 → 0.920, audit MIP 0.250 → 0.200"


def test_no_gain_of_a_collapsed_policy_counts_and_none_by_judges_that_were_exploited():
    credited = {
        name: (Verdict(name=name, why="").credits("reward"), Verdict(name=name, why="").credits("audit"))
        for name in ("steered", "collapsed", "judges over-optimised")
    }
    assert credited == {
        "steered": (True, True),
        "collapsed": (False, False),
        "judges over-optimised": (False, True),
    }
