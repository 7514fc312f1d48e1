"""Published preference dialogues, taken apart."""

import json

import pytest

from orchestrator.errors import BadInput
from orchestrator.tasks.dialogues.prepare import read_transcripts, split_pair, split_transcript

FIRST = "\n\nHuman: what is “tea”?\n\nAssistant: A drink.\n\nHuman: how so?\n\nAssistant:"


def test_the_prompt_is_everything_before_the_last_answer():
    assert split_transcript(FIRST + " Leaves & water 🍵.") == (
        "Human: what is “tea”?\n\nAssistant: A drink.\n\nHuman: how so?",
        "Leaves & water 🍵.",
    )


def test_pairs_without_a_shared_prompt_or_with_an_empty_answer_are_no_pairs():
    assert split_pair(FIRST + " a", FIRST + " b") is not None
    assert split_pair(FIRST + " a", "\n\nHuman: other\n\nAssistant: b") is None
    assert split_pair(FIRST + " a", FIRST + " ") is None
    assert split_pair("no marker", "no marker") is None


def test_rows_are_counted_or_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"chosen": FIRST + " a", "rejected": FIRST + " b", "note": 1}, {"chosen": "x", "rejected": "y"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_transcripts(str(path))
    assert (len(read.pairs), read.skipped) == (1, 1)
    path.write_text('{"chosen": "x"}\n')
    with pytest.raises(BadInput, match=r"rows\.jsonl:1: rejected: Field required"):
        read_transcripts(str(path))
    path.write_text('{"chosen": "x", "rejected": "y"}\n')
    with pytest.raises(BadInput, match="holds no pair of transcripts"):
        read_transcripts(str(path))


def test_a_hub_name_that_is_not_one_is_refused():
    with pytest.raises(BadInput, match="hub:NAME:DATA_DIR:SPLIT"):
        read_transcripts("hub:only-a-name")
