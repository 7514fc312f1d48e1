"""What the dialogue preparation does to rows before any model sees them."""

import pytest

from orchestrator.errors import BadInput
from orchestrator.tasks.dialogues.build import (
    DialogueSizes,
    first_turn,
    first_turns,
    share_interval,
    split_dialogues,
)
from orchestrator.tasks.dialogues.prepare import DialoguePair


def pair(prompt):
    return DialoguePair(prompt=prompt, chosen="good", rejected="bad")


def pairs(count):
    """Two dialogues that begin alike, and end otherwise, of every beginning."""
    return [pair(f"Human: question {i // 2}\n\nAssistant: yes?\n\nHuman: and {i}") for i in range(count)]


def test_dialogues_that_begin_alike_stand_on_one_side_of_the_split():
    split = split_dialogues(pairs(100), heldout=10, seed=0)
    assert len(split.heldout) == 20 and len(split.training) == 80
    assert not set(map(first_turn, split.heldout)) & set(map(first_turn, split.training))
    assert split == split_dialogues(pairs(100), heldout=10, seed=0) != split_dialogues(pairs(100), heldout=10, seed=1)


def test_too_few_beginnings_to_split_are_refused():
    with pytest.raises(BadInput, match="at least 60 different first turns to hold 30 out, got 50"):
        split_dialogues(pairs(100), heldout=30, seed=0)


def test_prompts_are_what_people_ask_first_once_each_and_of_a_prompt_s_length():
    asked = [
        pair("Human: what is “tea”?\n\nAssistant: A drink.\n\nHuman: how so?"),
        pair("Human: what is “tea”?"),
        pair("Human: hi"),
        pair("Human: " + "x" * 200),
        pair("Assistant: who asks?\n\nHuman: never you mind, friend"),
        pair("Human: why do people\n\ndrink it?"),
    ]
    assert first_turns(asked, DialogueSizes()) == ["what is “tea”?", "why do people\n\ndrink it?"]


def test_the_interval_of_a_share_is_wilson_s():
    assert share_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert share_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert share_interval(0.62, 200)[0] < 0.62 < share_interval(0.62, 200)[1]
