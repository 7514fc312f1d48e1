"""Scorers that count words, syllables and friendly words: what they say of texts whose scores are known."""

import math
import subprocess
import sys

import pytest

from rewards.functions import brevity, detail, long_words, repetition, right_number
from rewards.judge_sections import PythonScorerConfig
from rewards.judges import build_scorer, check_scorer
from rewards.readability import HIGHEST, LOWEST, reading_ease
from rewards.sentiment import positivity

EASY = "The cat sat on the mat. It was fun."
HARD = "Notwithstanding organisational difficulties, international negotiations continued."


def test_saying_less_than_enough_is_no_briefer():
    texts = ["", "one", "one two", "one two three"]
    assert brevity([""] * 4, texts, enough=2) == brevity([""] * 4, ["one two"] * 3 + ["one two three"])


def test_enough_detail_is_enough():
    scores = detail([""] * 3, ["one", "one two", "one two three"], enough=2)
    assert scores[0] < scores[1] == scores[2] == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("12 and 10 make 22.", 22, 1.0),
        ("It is 22, not 23.", 22, 0.0),
        ("22.0", "22", 1.0),
        ("That is 1,000 miles", 1000, 1.0),
        ("-3", -3, 1.0),
        ("twenty-two", 22, 0.0),
        ("", 0, 0.0),
    ],
)
def test_the_last_number_is_the_answer(response, answer, score):
    assert right_number(["?"], [response], answer=[answer]) == [score]


def test_brevity_and_detail_are_opposites():
    assert brevity([""] * 2, ["", "one two three"]) == [0.0, pytest.approx(-1.386, abs=1e-3)]
    assert detail([""], ["one two three"]) == [-brevity([""], ["one two three"])[0]]


def test_reading_ease_is_the_formula_of_flesch():
    """Nine words in two sentences, nine syllables."""
    assert reading_ease([""], [EASY]) == [pytest.approx(206.835 - 1.015 * 4.5 - 84.6 * 1, abs=0.1)]
    easy, hard = reading_ease([""] * 2, [EASY, HARD])
    assert easy > 100 and hard == LOWEST


def test_a_response_without_a_letter_is_no_easy_reading():
    assert reading_ease([""] * 3, ["", "!!!", "42."]) == [LOWEST] * 3
    assert all(LOWEST <= score <= HIGHEST for score in reading_ease([""] * 2, ["a", "I."]))


def test_positivity_is_signed_and_zero_without_an_opinion():
    good, bad, none = positivity([""] * 3, ["What a wonderful day!", "An awful failure.", "The table has four legs."])
    assert good == pytest.approx(0.61, abs=0.03) and bad < -0.5 and none == 0


@pytest.mark.parametrize("function", ["rewards.readability:reading_ease", "rewards.sentiment:positivity"])
def test_they_can_stand_in_a_recipe(function):
    config = PythonScorerConfig(function=function)
    assert check_scorer(config, "objectives.0.scorer") == []
    assert build_scorer(config).score(["p"], [EASY]).shape == (1,)


@pytest.mark.parametrize(("module", "package"), [("readability", "textstat"), ("sentiment", "vaderSentiment")])
def test_a_package_that_is_missing_is_named_with_what_to_do(module, package):
    hidden = f"import sys; sys.modules['{package}'] = None; import rewards.{module}"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60)
    assert f"the package {package} is part of the set-up (make setup)" in done.stderr


def test_different_long_words_count_once_each():
    texts = ["", "Enzymes, enzymes and ENZYMES turn nectar sour.", "Enzymes convert glucose2."]
    assert long_words([""] * 3, texts) == pytest.approx([0, math.log(2), math.log(4)])
    assert long_words([""], texts[1:2], letters=6) == pytest.approx([math.log(3)])


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("one two", 0), ("it is a cat. It is a dog.", 1 / 6), ("no no no no no", 2 / 3), ("a b c d e", 0)],
)
def test_repetition_is_the_share_of_runs_of_three_words_that_stood_before(text, share):
    assert repetition(text) == pytest.approx(share)


def test_saying_it_again_need_not_pay():
    again = " ".join([EASY] * 6)
    once, repeated = detail([""] * 2, [EASY, again], repeated=False)
    assert repeated < once + math.log(1.2) < detail([""], [again])[0]
    assert reading_ease([""], [EASY], repetition=100) == reading_ease([""], [EASY])
    cost = reading_ease([""], [again])[0] - reading_ease([""], [again], repetition=100)[0]
    assert cost == pytest.approx(100 * repetition(again)) and cost > 75
