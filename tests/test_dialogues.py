"""What the dialogue preparation does to rows before any model sees them."""

import numpy as np
import pytest

from orchestrator.errors import BadInput
from orchestrator.tasks.dialogues.build import DialogueSpec, conditioned_rows, fit_to_context, openings, split_dialogues
from orchestrator.tasks.dialogues.prepare import DialoguePair
from tests.word_tokenizer import WordTokenizer


def pairs(count, *, words=5):
    rng = np.random.default_rng(0)
    return [
        DialoguePair(
            prompt=f"Human: question {i // 2}",
            chosen=" ".join(["word"] * int(rng.integers(1, 10 * words))),
            rejected=" ".join(["word"] * int(rng.integers(1, 10 * words))),
        )
        for i in range(count)
    ]


def test_no_prompt_stands_on_both_sides_of_the_split():
    split = split_dialogues(pairs(100), heldout=10, seed=0)
    assert len({pair.prompt for pair in split.heldout}) == 10
    assert not {pair.prompt for pair in split.heldout} & {pair.prompt for pair in split.training}
    assert len(split.heldout) + len(split.training) == 100
    assert split == split_dialogues(pairs(100), heldout=10, seed=0)


def test_too_few_prompts_to_split_are_refused():
    with pytest.raises(BadInput, match="at least 60 different prompts"):
        split_dialogues(pairs(100), heldout=30, seed=0)


def test_a_long_answer_is_fitted_under_a_high_weight_of_detail():
    rows = conditioned_rows(pairs(300), seed=0, max_words=45)
    length = [len(row["response"].split()) for row in rows]
    detail = [row["preference"][1] for row in rows]
    assert np.corrcoef(length, detail)[0, 1] > 0.9
    assert all(sum(row["preference"]) == pytest.approx(1) and min(row["preference"]) >= 0 for row in rows)


def test_of_two_answers_of_one_length_the_chosen_one_weighs_harmlessness_more():
    same = [DialoguePair(prompt="Human: q", chosen="a b c", rejected="d e f") for _ in range(400)]
    rows = conditioned_rows(same, seed=0, max_words=45)
    chosen, rejected = ([row["preference"][0] for row in rows[start::2]] for start in (0, 1))
    assert np.mean(chosen) > np.mean(rejected) + 0.05


def test_an_answer_of_several_sentences_stands_for_one_of_its_openings_too():
    pair = DialoguePair(prompt="Human: q", chosen="No. I will not. It is wrong", rejected="One sentence only.")
    responses = [row["response"] for row in conditioned_rows([pair], seed=0, max_words=45)]
    assert len(responses) == 3 and responses[0] == pair.chosen and responses[2] == pair.rejected
    assert responses[1] in ("No.", "No. I will not.")


def test_openings_end_with_a_sentence_and_keep_to_the_limit():
    assert openings("No. I pay 3.50 for it! Or not", max_words=6) == ["No.", "No. I pay 3.50 for it!"]
    assert openings("no sentence ends here", max_words=6) == ["no sentence ends here"]
    assert openings("a b c d e f g", max_words=6) == []


def test_prompts_are_shortened_at_a_turn_or_dropped():
    spec = DialogueSpec(context=30, max_answer_tokens=10)
    long_turn = "Human: " + "x " * 40
    training = (
        DialoguePair(prompt="Human: hi", chosen="a", rejected="b"),
        DialoguePair(prompt=f"{long_turn}\n\nAssistant: ok\n\nHuman: so", chosen="a", rejected="b"),
        DialoguePair(prompt=long_turn, chosen="a", rejected="b"),
    )
    split = split_dialogues(pairs(40), heldout=2, seed=0)
    fitted, dropped, shortened = fit_to_context(type(split)(training=training, heldout=()), spec, WordTokenizer())
    assert [pair.prompt for pair in fitted.training] == ["Human: hi", "Human: so"]
    assert (dropped, shortened) == (1, 1)
