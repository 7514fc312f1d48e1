"""Weights on the simplex, and how they get into a prompt and out of it again."""

import functools
import itertools
import math

import numpy as np
import pytest
from word_tokenizer import WordTokenizer

from rewards.config import ConditioningConfig, PreferencesConfig
from rewards.preferences import PromptRenderer
from rewards.prompts import Prompt, Turn
from rewards.simplex import (
    GRID_LIMIT,
    PreferenceError,
    PreferenceSampler,
    evaluation_grid,
    parse_preference,
    quantize,
    sample_negatives,
    sample_preference_pairs,
    simplex_grid,
)
from tests.written_prompts import parse

OBJECTIVES = ("helpfulness", "harmlessness")


@pytest.mark.parametrize("decimals", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_quantised_weights_sum_to_one_in_whole_units_and_move_less_than_one_unit(k, decimals):
    weights = np.random.default_rng(k).dirichlet(np.full(k, 0.4), size=500)
    quantized = quantize(weights, decimals)
    units = quantized * 10**decimals
    np.testing.assert_allclose(units, units.round(), atol=1e-9)
    assert (units.round().sum(-1) == 10**decimals).all()
    assert (units >= 0).all()
    assert np.abs(units - weights * 10**decimals).max() < 1


def test_quantising_takes_the_largest_remainders_and_breaks_ties_to_the_left():
    np.testing.assert_allclose(quantize([0.24, 0.28, 0.48], 1), [0.2, 0.3, 0.5])
    np.testing.assert_allclose(quantize([1 / 3, 1 / 3, 1 / 3], 1), [0.4, 0.3, 0.3])
    np.testing.assert_allclose(quantize([0.15, 0.85], 1), [0.2, 0.8])
    np.testing.assert_allclose(quantize([0.85, 0.15], 1), [0.9, 0.1])


def test_quantising_twice_changes_nothing_and_shapes_stay():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=(4, 5))
    once = quantize(weights, 2)
    assert once.shape == (4, 5, 3)
    assert (quantize(once, 2) == once).all()
    grid = simplex_grid(3, 10)
    assert (quantize(grid, 1) == grid).all()


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.1, 1.1], [math.nan, 1.0], [math.inf, 0.0], []])
def test_weights_off_the_simplex_are_refused(weights):
    with pytest.raises(PreferenceError):
        quantize(weights, 1)


def test_sampled_pairs_are_reproducible_quantised_and_do_not_depend_on_how_many_are_drawn():
    pos, neg = sample_preference_pairs(np.random.default_rng(3), 50, 3, alpha=0.5, decimals=1)
    again_pos, again_neg = sample_preference_pairs(np.random.default_rng(3), 20, 3, alpha=0.5, decimals=1)
    assert pos.shape == (50, 3) and neg.shape == (50, 1, 3)
    assert pos.dtype == np.float64
    assert (pos[:20] == again_pos).all() and (neg[:20] == again_neg).all()
    assert (quantize(pos, 1) == pos).all() and (quantize(neg, 1) == neg).all()
    assert not (pos == neg[:, 0]).all()


def test_a_small_alpha_favours_corners_and_every_objective_alike():
    corners = {}
    for alpha in (0.05, 20.0):
        pos, _ = sample_preference_pairs(np.random.default_rng(0), 2000, 3, alpha=alpha, decimals=1)
        np.testing.assert_allclose(pos.mean(0), 1 / 3, atol=0.03)
        corners[alpha] = (pos.max(-1) == 1.0).mean()
    assert corners[0.05] > 0.7
    assert corners[20.0] == 0


def test_the_lattice_has_every_composition_once_and_starts_at_the_first_corner():
    for k, steps in ((1, 4), (2, 10), (3, 5), (4, 3)):
        grid = simplex_grid(k, steps)
        expected = [c for c in itertools.product(range(steps + 1), repeat=k) if sum(c) == steps]
        assert sorted(map(tuple, (grid * steps).round().astype(int))) == sorted(expected)
        assert grid[0, 0] == 1 and grid[-1, -1] == 1
    with pytest.raises(PreferenceError, match="steps=0"):
        simplex_grid(2, 0)


def test_the_evaluation_grids_are_those_of_the_paper():
    assert evaluation_grid(1).tolist() == [[1.0]]
    two = evaluation_grid(2)
    np.testing.assert_allclose(two[:, 0], np.arange(10, -1, -1) / 10)
    np.testing.assert_allclose(two.sum(1), 1)
    three = evaluation_grid(3)
    assert three.shape == (13, 3)
    assert [1 / 3] * 3 in three.tolist()
    np.testing.assert_allclose(three.sum(1), 1, atol=1e-12)
    assert three[0].tolist() == [0, 0, 1] and three[-1].tolist() == [1, 0, 0]
    assert three[4].tolist() == [0.2, 0.2, 0.6] and three[8].tolist() == [0.4, 0.4, 0.2]


@pytest.mark.parametrize("k", range(4, 12))
def test_larger_grids_stay_bounded_and_hold_corners_and_centre(k):
    grid = evaluation_grid(k)
    assert k < len(grid) <= GRID_LIMIT + 1
    rows = {tuple(row.round(9)) for row in grid}
    assert len(rows) == len(grid)
    assert all(tuple(corner) in rows for corner in np.eye(k))
    assert tuple(np.full(k, 1 / k).round(9)) in rows


def test_a_named_preference_follows_the_order_of_the_objectives():
    assert parse_preference({"harmlessness": 0.3, "helpfulness": 0.7}, OBJECTIVES).tolist() == [0.7, 0.3]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ({"helpfulness": 0.5, "harmlessness": 0.3, "humor": 0.2}, "unknown objective 'humor'"),
        ({"helpfulness": 1.0}, "no weight for objective 'harmlessness'"),
        ({"helpfulness": -0.5, "harmlessness": 1.5}, "finite and >= 0, got -0.5"),
        ({"helpfulness": math.nan, "harmlessness": 1.0}, "finite and >= 0, got nan"),
        ({"helpfulness": "much", "harmlessness": 1.0}, "must be a number, got 'much'"),
        ({"helpfulness": 0.5, "harmlessness": 0.4}, "sum to 1, got 0.9"),
    ],
)
def test_a_bad_preference_is_refused_naming_rule_and_value(items, words):
    with pytest.raises(PreferenceError, match=words):
        parse_preference(items, OBJECTIVES)


def test_the_default_rendering_is_the_papers_tail_form():
    renderer = PromptRenderer(ConditioningConfig(), OBJECTIVES, 1)
    assert (
        renderer.text("how do i bake bread ?", [0.7, 0.3])
        == "Human: how do i bake bread ? <helpfulness> 0.7 <harmlessness> 0.3 Assistant:"
    )
    assert "<helpfulness> 1.0 <harmlessness> 0.0" in renderer.text("x", [1, 0])
    assert "<helpfulness> 0.3 <harmlessness> 0.7" in renderer.text("x", [0.333, 0.667])


HARD_PROMPTS = (
    "",
    " leading and trailing \n",
    "braces {prompt} {weights} {0} {{}} {name}",
    "line\nbreaks\r\n\tand tabs",
    "unicode \u00e9 \u4f60\u597d \U0001f600 \u202e",
    "fake <helpfulness> 0.1 <harmlessness> 0.9 Assistant:",
    "Human: fake <helpfulness> 0.1 <harmlessness> 0.9 Assistant: Human: ",
    r"back\slash \1 \g<0> $1 %s",
)


@pytest.mark.parametrize("prompt", HARD_PROMPTS)
@pytest.mark.parametrize(
    "config",
    [
        ConditioningConfig(),
        ConditioningConfig(template="{weights} {prompt}", weight="{weight} {name}", separator=" | "),
        ConditioningConfig(template="{prompt}{weights}", weight="{name}{weight}", separator=""),
        ConditioningConfig(template="[{weights}](.*) {x} {prompt}\n", weight="{name}: {weight}", separator=", "),
    ],
    ids=["tail", "head", "glued", "odd"],
)
def test_rendering_and_parsing_are_inverse_for_any_prompt(config, prompt):
    for decimals, preference in ((1, [0.7, 0.3]), (2, [1.0, 0.0]), (3, [0.125, 0.875])):
        renderer = PromptRenderer(config, OBJECTIVES, decimals)
        text = renderer.text(prompt, preference)
        assert prompt in text
        parsed_prompt, parsed = parse(renderer, text)
        assert parsed_prompt == prompt
        assert parsed.tolist() == quantize(preference, decimals).tolist()


@pytest.mark.parametrize(
    ("preference", "written"),
    [
        ([0.7, 0.3], "x [deep deep deep deep deep deep deep easy easy easy]"),
        ([0.04, 0.96], "x [easy easy easy easy easy easy easy easy easy easy]"),
        ([1.0, 0.0], "x [deep deep deep deep deep deep deep deep deep deep]"),
    ],
)
def test_repeated_writes_a_name_as_often_as_its_weight_has_tenths(preference, written):
    config = ConditioningConfig(template="{prompt} [{weights}]", weight="{repeated}")
    assert PromptRenderer(config, ("deep", "easy"), 1).text("x", preference) == written


def test_what_stands_around_repeated_is_written_once_for_each_name_that_is_there():
    config = ConditioningConfig(template="{weights} {prompt}", weight="<{repeated}>", separator=",")
    renderer = PromptRenderer(config, ("a", "b", "c"), 1)
    assert renderer.text("{name}", [0.2, 0.0, 0.8]) == "<a,a>,<c,c,c,c,c,c,c,c> {name}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Human: x Assistant:",
        "Human: x <helpfulness> 0.7 <harmlessness> 0.7 Assistant:",
        "Human: x <harmlessness> 0.7 <helpfulness> 0.3 Assistant:",
        "Human: x <helpfulness> 0.70 <harmlessness> 0.30 Assistant:",
        "x <helpfulness> 0.7 <harmlessness> 0.3 Assistant:",
        "Human: <helpfulness> 0.7 <harmlessness> 0.3 Assistant:",
    ],
)
def test_foreign_text_is_not_parsed(text):
    with pytest.raises(PreferenceError, match="does not follow the template"):
        parse(PromptRenderer(ConditioningConfig(), OBJECTIVES, 1), text)


def test_the_number_of_weights_must_match_the_objectives():
    with pytest.raises(PreferenceError, match="expected 2 weights"):
        PromptRenderer(ConditioningConfig(), OBJECTIVES, 1).text("x", [0.2, 0.3, 0.5])


def test_text_style_tokens_are_the_tokens_of_the_text():
    tokenizer = WordTokenizer()
    renderer = PromptRenderer(ConditioningConfig(), OBJECTIVES, 1, tokenizer)
    ids = renderer.token_ids("hello there", [0.7, 0.3])
    words = {index: word for word, index in tokenizer.words.items()}
    assert " ".join(words[index] for index in ids) == renderer.text("hello there", [0.7, 0.3])
    assert all(type(index) is int for index in ids)


class ChatTokenizer(WordTokenizer):
    """Writes chat turns with its own start token, and adds that token again when it is allowed to."""

    def __call__(self, text, add_special_tokens=True):
        return super().__call__("<s> " + text if add_special_tokens else text)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, enable_thinking=True):
        assert tokenize is False and add_generation_prompt is True
        turns = "".join(f"[{message['role']}] {message['content']} " for message in messages)
        return "<s> " + turns + "[assistant]" + (" [think]" if enable_thinking is False else "")


def test_chat_style_goes_through_the_chat_template_without_doubled_special_tokens():
    tokenizer = ChatTokenizer()
    renderer = PromptRenderer(ConditioningConfig(style="chat", system="Obey."), OBJECTIVES, 1, tokenizer)
    text = renderer.text("hi {weights}", [0.7, 0.3])
    assert text == "<s> [system] Obey. [user] hi {weights} <helpfulness> 0.7 <harmlessness> 0.3 [assistant]"
    ids = renderer.token_ids("hi {weights}", [0.7, 0.3])
    assert len(ids) == len(text.split())
    with pytest.raises(PreferenceError, match="style 'text'"):
        parse(renderer, text)


def test_a_dialogue_keeps_its_turns_and_w_stands_in_the_last():
    earlier = (Turn(role="user", content="hi"), Turn(role="assistant", content="Hello!"))
    dialogue = Prompt(text="why?", earlier=earlier)
    renderer = PromptRenderer(ConditioningConfig(style="chat"), OBJECTIVES, 1, ChatTokenizer())
    written = "<s> [user] hi [assistant] Hello! [user] why? <helpfulness> 1.0 <harmlessness> 0.0 [assistant]"
    assert renderer.text(dialogue, [1, 0]) == written
    assert len(renderer.token_ids(dialogue, [1, 0])) == len(written.split())
    renderer.check_each([dialogue])
    with pytest.raises(PreferenceError, match="style 'text' takes one text, got a dialogue"):
        PromptRenderer(ConditioningConfig(), OBJECTIVES, 1, WordTokenizer()).check_each([Prompt(text="hi"), dialogue])


def test_what_the_system_says_in_a_dialogue_follows_the_recipe_s():
    dialogue = Prompt(text="why?", earlier=(Turn(role="system", content="Be kind."),))
    for system, written in (("Obey.", "Obey.\n\nBe kind."), (None, "Be kind.")):
        renderer = PromptRenderer(ConditioningConfig(style="chat", system=system), OBJECTIVES, 1, ChatTokenizer())
        assert renderer.text(dialogue, [1, 0]).startswith(f"<s> [system] {written} [user] why?")


def test_the_chat_template_gets_its_options():
    config = ConditioningConfig(style="chat", chat_options={"enable_thinking": False})
    renderer = PromptRenderer(config, OBJECTIVES, 1, ChatTokenizer())
    assert renderer.text("hi", np.eye(len(OBJECTIVES))[0]).endswith("[assistant] [think]")
    with pytest.raises(ValueError, match="chat_options is for style 'chat' only"):
        ConditioningConfig(chat_options={"enable_thinking": False})


def test_chat_weights_may_stand_in_the_system_message():
    config = ConditioningConfig(style="chat", system="Weights: {weights}")
    text = PromptRenderer(config, OBJECTIVES, 1, ChatTokenizer()).text("hi", [1, 0])
    assert text == "<s> [system] Weights: <helpfulness> 1.0 <harmlessness> 0.0 [user] hi [assistant]"


def test_a_renderer_without_tokenizer_says_so():
    with pytest.raises(PreferenceError, match="without a tokenizer"):
        PromptRenderer(ConditioningConfig(), OBJECTIVES, 1).token_ids("x", [1, 0])
    with pytest.raises(PreferenceError, match="at least one objective"):
        PromptRenderer(ConditioningConfig(), (), 1)


@pytest.mark.parametrize("k", [2, 3])
def test_a_least_distance_keeps_w_minus_away_and_leaves_w_plus_as_it_was(k):
    pos, neg = sample_preference_pairs(np.random.default_rng(3), 400, k, alpha=0.5, decimals=1)
    kept, far = sample_preference_pairs(np.random.default_rng(3), 400, k, alpha=0.5, decimals=1, min_distance=1.0)
    assert np.array_equal(kept, pos)
    distance = np.abs(pos[:, None] - neg).sum(axis=-1)
    assert (distance < 0.9).any() and np.abs(kept[:, None] - far).sum(axis=-1).min() > 1 - 1e-9
    assert np.array_equal(far[distance >= 1], neg[distance >= 1])
    assert np.allclose(far.sum(axis=-1), 1)


@pytest.mark.parametrize("k", [2, 3])
def test_a_given_w_plus_gets_a_w_minus_that_keeps_its_distance(k):
    given = np.repeat(np.eye(k), 50, axis=0)
    draw = functools.partial(sample_negatives, positive_NK=given, alpha=0.5, decimals=1)
    far = draw(np.random.default_rng(3), min_distance=1.0)
    assert far.shape == given.shape and np.abs(given - far).sum(axis=-1).min() > 1 - 1e-9
    assert (quantize(far, 1) == far).all() and len(np.unique(far, axis=0)) > 5
    assert np.abs(given - draw(np.random.default_rng(3), min_distance=0.0)).sum(axis=-1).min() < 0.9


def test_several_w_minus_are_independent_and_all_keep_their_distance():
    draw = functools.partial(sample_preference_pairs, n=400, k=2, alpha=0.5, decimals=1, negatives=3)
    pos, neg = draw(np.random.default_rng(3))
    assert neg.shape == (400, 3, 2)
    assert abs(np.corrcoef(neg[:, 0, 0], neg[:, 1, 0])[0, 1]) < 0.15
    _, far = draw(np.random.default_rng(3), min_distance=0.6)
    assert np.abs(pos[:, None] - far).sum(axis=-1).min() > 0.6 - 1e-9 > np.abs(pos[:, None] - neg).sum(axis=-1).min()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_vectors_of_the_grid_are_drawn_alike_and_told_apart_from_others_of_it(k):
    config = PreferencesConfig(draw="grid", negatives=2, min_distance=0.6)
    grid = quantize(evaluation_grid(k), 1)
    positive, negative = PreferenceSampler(config).draw(np.random.default_rng(0), 2000, k)
    assert positive.shape == (2000, k) and negative.shape == (2000, 2, k)
    drawn, counts = np.unique(positive, axis=0, return_counts=True)
    assert len(drawn) == len(np.unique(grid, axis=0)) and counts.min() > 1000 / len(grid)
    assert {tuple(w) for w in negative.reshape(-1, k)} <= {tuple(w) for w in grid}
    if k > 1:
        assert np.abs(positive[:, None] - negative).sum(axis=-1).min() >= 0.6 - 1e-9
    again, _ = PreferenceSampler(config).draw(np.random.default_rng(0), 2000, k)
    assert (again == positive).all()
