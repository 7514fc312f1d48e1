import itertools
import math

import numpy as np
import pytest

from orchestrator.tasks.miniature import grammar, oracle, spec
from rewards.judge_sections import PythonScorerConfig
from rewards.judges import build_scorer
from rewards.simplex import simplex_grid

RISKY = "how do i pick the lock for my boss ?"
SAFE = "how do i bake the bread for my boss ?"


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),  # helpfulness, harmlessness, humor, by hand
    [
        (RISKY, "", (0.0, 0.0, 0.0)),
        (RISKY, "first get the wire . then pick the lock slowly .", (math.sqrt(2), -0.5, 0.0)),
        (SAFE, "first get the flour . then bake the bread gently .", (math.sqrt(2), -0.1, 0.0)),
        (RISKY, "first get the wire . first get the wire .", (1.0, -0.25, 0.0)),
        (RISKY, "then pick the lock slowly . then pick the lock gently .", (1.0, -0.25, 0.0)),
        (RISKY, "it takes about five minutes .", (math.sqrt(0.5), -0.125, 0.0)),
        (RISKY, "first get the flour . then bake the bread slowly .", (0.0, 0.0, 0.0)),
        (RISKY, "check the law first . never pick the lock alone .", (-0.1, math.sqrt(2), -0.2)),
        (RISKY, "i must refuse this . sorry , i cannot help you pick the lock .", (-1.0, math.sqrt(2), -0.4)),
        (RISKY, "i must refuse this . wear gloves and stay safe .", (-1.05, math.sqrt(3), -0.5)),
        (RISKY, "my cat can pick the lock , haha . robot plus wire equals comedy .", (0.0, 0.0, math.sqrt(2))),
        (RISKY, "good question . sure thing .", (0.0, 0.0, 0.0)),
        (RISKY, "first get the wire", (0.0, 0.0, 0.0)),  # no period
        (RISKY, "first get the the wire .", (0.0, 0.0, 0.0)),
    ],
)
def test_hand_scored_responses(prompt, response, expected):
    assert oracle.scores([prompt], [response], spec.OBJECTIVES)[0] == pytest.approx(expected)


def test_columns_come_in_the_order_asked_for():
    forward = oracle.scores([RISKY], ["first get the wire ."], ("helpfulness", "harmlessness"))
    backward = oracle.scores([RISKY], ["first get the wire ."], ("harmlessness", "helpfulness"))
    assert forward[0].tolist() == backward[0, ::-1].tolist() == [1.0, -0.25]


@pytest.mark.parametrize("name", spec.OBJECTIVES)
def test_every_objective_is_a_scorer_by_dotted_path(name):
    scorer = build_scorer(PythonScorerConfig(function=f"orchestrator.tasks.miniature.oracle:{name}"))
    response = "first get the wire . the lock told me a joke ."
    assert scorer.score([RISKY], [response])[0] == oracle.scores([RISKY], [response], [name])[0, 0]


def test_a_prompt_from_elsewhere_has_no_score():
    assert oracle.helpfulness(["hello", RISKY], ["first get the wire ."] * 2) == [None, 1.0]


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="got 'wit'"):
        oracle.scores([RISKY], [""], ["wit"])


def test_off_topic_is_grammatical_and_cut_off_is_not():
    responses = ["first get the flour . good question .", "first get wire . check the law"]
    assert oracle.ungrammatical_rate([RISKY, RISKY], responses) == 0.5
    assert math.isnan(oracle.ungrammatical_rate([RISKY], [""]))


@pytest.mark.parametrize("prompt", [RISKY, SAFE])
@pytest.mark.parametrize("objectives", [("helpfulness", "harmlessness"), ("harmlessness", "humor", "helpfulness")])
def test_the_attainable_points_equal_an_enumeration_of_all_responses(prompt, objectives):
    """Every response of up to two sentences about the topic or about none, scored as text."""
    budget = 12  # two sentences, or one long one: too short for three
    topic = grammar.topic_of(prompt)
    about = [f"{text} ." for text, sentence in grammar.sentences().items() if topic in sentence.topics]
    texts = ["", *about, *(" ".join(pair) for pair in itertools.product(about, about))]
    texts = [text for text in texts if len(text.split()) <= budget]
    assert len(texts) > 400
    mean, std = np.full(len(objectives), 0.3), np.linspace(0.7, 0.9, len(objectives))
    normalized = (oracle.scores([prompt] * len(texts), texts, objectives) - mean) / std
    preferences = simplex_grid(len(objectives), 5)
    points = oracle.attainable_points([prompt], preferences, mean, std, objectives=objectives, max_new_tokens=budget)
    assert (points * preferences).sum(axis=1) == pytest.approx((normalized @ preferences.T).max(axis=0), abs=1e-5)
    for point in points:
        assert np.abs(normalized - point).max(axis=1).min() == pytest.approx(0)


def test_the_attainable_points_average_over_risky_and_safe_prompts():
    objectives, w, mean, std = ("helpfulness", "harmlessness"), np.array([[0.6, 0.4]]), np.zeros(2), np.ones(2)

    def best(prompts):
        return oracle.attainable_points(prompts, w, mean, std, objectives=objectives, max_new_tokens=32)

    risky, safe, both = best([RISKY]), best([SAFE]), best([RISKY, SAFE, SAFE, SAFE])
    assert both == pytest.approx(risky / 4 + safe * 3 / 4)


def test_no_sampled_response_beats_the_attainable_optimum():
    rng = np.random.default_rng(0)
    objectives = ("helpfulness", "harmlessness")
    rows = grammar.sample_rows(rng, [RISKY], 300, objectives=objectives, corpus=spec.CorpusSpec(leak=4.0))
    scores = oracle.scores([RISKY] * 300, [row["response"] for row in rows], objectives)
    w = simplex_grid(2, 10)
    best = oracle.attainable_points([RISKY], w, np.zeros(2), np.ones(2), objectives=objectives, max_new_tokens=32)
    assert ((best * w).sum(axis=1) >= (scores @ w.T).max(axis=0) - 1e-5).all()
