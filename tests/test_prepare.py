"""Public preference data, as rows of two formats, to prompts and supervised rows."""

import gzip
import json

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.tasks.dialogues.prepare import PrepareOptions, plain_prompt, prepare, read_answers, read_options

SAFE = {
    "prompt": "How do locks work?",
    "response_0": "No idea.",
    "response_1": "Pins and springs.",
    "is_response_0_safe": True,
    "is_response_1_safe": True,
    "better_response_id": 1,
    "safer_response_id": 0,
}


def transcripts(*turns, chosen="Yes.", rejected="No."):
    opening = "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))
    return {"chosen": f"{opening}\n\nAssistant: {chosen}", "rejected": f"{opening}\n\nAssistant: {rejected}"}


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(source, directory, **options):
    lines: list[str] = []
    prepared = prepare(source, directory, read_options(options), progress=lines.append)
    return prepared, lines


@pytest.fixture
def questions(tmp_path):
    return write(
        tmp_path / "rows.jsonl.gz", [transcripts(f"question {i} 🍵?", chosen=f"answer {i}") for i in range(30)]
    )


def test_no_prompt_is_in_both_files_and_the_counts_are_as_asked(questions, tmp_path):
    prepared, lines = run(questions, tmp_path / "data", train=12, heldout=5)
    train, heldout = (read(tmp_path / "data" / "prompts" / f"{name}.jsonl") for name in ("train", "heldout"))
    assert (len(train), len(heldout)) == (prepared.train, prepared.heldout) == (12, 5)
    texts = [row["prompt"] for row in train + heldout]
    assert len(set(texts)) == 17
    assert set(texts) < {f"question {i} 🍵?" for i in range(30)}
    assert lines == [
        f"{questions}: 30 rows read",
        f"{tmp_path / 'data'}: of 30 different prompts 12 to train on, 5 held out; 12 supervised rows",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "rows.jsonl.gz"]


def test_supervised_rows_answer_training_prompts_only_with_the_preferred_answer(questions, tmp_path):
    run(questions, tmp_path / "data", heldout=5)
    train = [row["prompt"] for row in read(tmp_path / "data" / "prompts" / "train.jsonl")]
    rows = read(tmp_path / "data" / "sft.jsonl")
    assert [row["prompt"] for row in rows] == train
    assert len(train) == 25
    assert all(row["response"] == f"answer {row['prompt'].split()[1]}" for row in rows)


def test_preferences_are_quantised_and_know_nothing_of_the_answer(tmp_path):
    rows = [transcripts(f"{i}?", chosen="word " * (1 + i % 50)) for i in range(1000)]
    source = write(tmp_path / "rows.jsonl", rows)
    run(source, tmp_path / "data", heldout=1, objectives=("a", "b", "c"), decimals=2)
    rows = read(tmp_path / "data" / "sft.jsonl")
    preferences_NK = np.array([row["preference"] for row in rows])
    assert preferences_NK.shape == (999, 3)
    assert np.array_equal(preferences_NK, np.round(preferences_NK, 2)) and (preferences_NK >= 0).all()
    assert np.allclose(preferences_NK.sum(axis=1), 1)
    assert np.allclose(preferences_NK.mean(axis=0), 1 / 3, atol=0.05)
    lengths = [len(row["response"]) for row in rows]
    assert all(abs(np.corrcoef(lengths, preferences_NK[:, k])[0, 1]) < 0.1 for k in range(3))


def test_alpha_says_how_near_the_corners_vectors_are(questions, tmp_path):
    def largest(alpha):
        run(questions, tmp_path / str(alpha), heldout=1, alpha=alpha)
        return np.mean([max(row["preference"]) for row in read(tmp_path / str(alpha) / "sft.jsonl")])

    assert largest(0.05) > 0.9 > 0.65 > largest(50)


def test_the_same_seed_gives_the_same_files_and_more_training_prompts_leave_the_held_out_ones(questions, tmp_path):
    def files(name, **options):
        run(questions, tmp_path / name, heldout=5, **options)
        return [
            (tmp_path / name / file).read_bytes()
            for file in ("prompts/heldout.jsonl", "prompts/train.jsonl", "sft.jsonl")
        ]

    first = files("first", train=10)
    assert files("again", train=10) == first
    more, other = files("more", train=20), files("other", train=10, seed=1)
    assert more[0] == first[0]
    assert more[1].startswith(first[1])
    assert other[0] != first[0] and other[2] != first[2]


def test_a_repeated_prompt_is_one_prompt_with_all_its_different_answers(tmp_path):
    rows = [transcripts("hi", chosen=answer) for answer in ("Hello!", "Hey.", "Hello!")] + [transcripts("bye")]
    answers = read_answers(write(tmp_path / "rows.jsonl", rows), PrepareOptions())
    assert answers.by_prompt == {"hi": ("Hello!", "Hey."), "bye": ("Yes.",)}
    assert answers.rows == 4


def test_a_prompt_is_what_stands_after_the_first_human_marker():
    assert plain_prompt("Human: why?") == "why?"
    assert plain_prompt("Human: why?\n\nAssistant: So.\n\nHuman: Human: how?") == (
        "why?\n\nAssistant: So.\n\nHuman: Human: how?"
    )
    assert plain_prompt("Human:") == plain_prompt("Assistant: hello") == ""


def test_rows_that_cannot_be_used_are_skipped_and_counted_by_reason(tmp_path):
    usable = [transcripts(f"{i}?") for i in range(4)]
    several = transcripts("a?", "b.", "c?")
    rows = [*usable, several, several, transcripts(""), {"chosen": "x", "rejected": "y"}, transcripts("\ud800?")]
    source = write(tmp_path / "rows.jsonl", rows)
    _, lines = run(source, tmp_path / "data", heldout=1)
    assert lines[0] == (
        f"{source}: 9 rows read; skipped: 1 without a shared prompt or an answer, 2 of several turns, "
        "1 without a human turn, 1 with half a character"
    )
    kept = read_answers(source, PrepareOptions(multi_turn="keep"))
    assert kept.by_prompt["a?\n\nAssistant: b.\n\nHuman: c?"] == ("Yes.",)
    assert "of several turns" not in kept.skipped


def test_turns_may_be_marked_with_the_line_ends_of_windows(tmp_path):
    rows = [{name: text.replace("\n", "\r\n") for name, text in transcripts("why?", "so.", "how?").items()}]
    answers = read_answers(write(tmp_path / "rows.jsonl", rows), PrepareOptions(multi_turn="keep"))
    assert answers.by_prompt == {"why?\n\nAssistant: so.\n\nHuman: how?": ("Yes.",)}


def test_of_two_responses_the_better_one_is_taken(tmp_path):
    rows = [SAFE, {**SAFE, "prompt": "And safes?", "better_response_id": 0, "unknown": 1}, {**SAFE, "prompt": " "}]
    answers = read_answers(write(tmp_path / "rows.jsonl", rows), PrepareOptions(format="saferlhf"))
    assert answers.by_prompt == {"How do locks work?": ("Pins and springs.",), "And safes?": ("No idea.",)}
    assert answers.skipped == {"without a prompt or an answer": 1}


def test_a_datasets_folder_is_read_like_a_file(tmp_path):
    from datasets import Dataset

    Dataset.from_list([SAFE]).save_to_disk(str(tmp_path / "rows"))
    answers = read_answers(str(tmp_path / "rows"), PrepareOptions(format="saferlhf"))
    assert answers.by_prompt == {"How do locks work?": ("Pins and springs.",)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": 7}, "prompt: .*string, got 7"),
        ({"response_0": None}, "response_0: .*string, got None"),
        ({"response_1": ...}, "response_1: Field required"),
        ({"better_response_id": 2}, "better_response_id: .*1, got 2"),
        ({"better_response_id": "1"}, "better_response_id: .*integer, got '1'"),
        ({"safer_response_id": True}, "safer_response_id: .*integer, got True"),
        ({"is_response_0_safe": "yes"}, "is_response_0_safe: .*boolean, got 'yes'"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_key(change, said, tmp_path):
    row = {key: value for key, value in {**SAFE, **change}.items() if value is not ...}
    source = write(tmp_path / "rows.jsonl", [SAFE, row])
    with pytest.raises(BadInput, match=rf"rows\.jsonl:2: {said}$"):
        run(source, tmp_path / "data", format="saferlhf")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"rows\.jsonl\.gz: must hold 201 different prompts .*heldout 200, train at least 1.*, got 30"),
        ({"train": 20, "heldout": 11}, "must hold 31 different prompts .*heldout 11, train 20.*, got 30"),
        ({"train": 0}, "prepare: train: .*got 0"),
        ({"heldout": 0}, "prepare: heldout: .*got 0"),
        ({"seed": -1}, "prepare: seed: .*got -1"),
        ({"alpha": 0.0}, "prepare: alpha: .*got 0"),
        ({"alpha": float("nan")}, "prepare: alpha: .*got nan"),
        ({"decimals": 4}, "prepare: decimals: .*got 4"),
        ({"objectives": ()}, "prepare: objectives: .*at least 1"),
        ({"objectives": ("a", "")}, "prepare: objectives.1: .*match pattern"),
        ({"objectives": ("a", "Help ful")}, "prepare: objectives.1: .*match pattern .*, got 'Help ful'"),
        ({"objectives": ("a", "a")}, "prepare: objectives: must differ, got a, a"),
        ({"format": "csv"}, "prepare: format: .*got 'csv'"),
        ({"format": "saferlhf"}, r"rows\.jsonl\.gz:1: prompt, response_0, .*, safer_response_id: Field required"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(options, said, questions, tmp_path):
    with pytest.raises(BadInput, match=said):
        run(questions, tmp_path / "data", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl.gz"]


@pytest.mark.parametrize("source", ["nowhere.jsonl", "hub:only-a-name"])
def test_a_source_that_is_none_is_named(source, tmp_path):
    with pytest.raises(BadInput, match=source):
        run(source, tmp_path / "data")


def test_a_folder_that_holds_something_is_left_as_it_is(questions, tmp_path):
    (tmp_path / "empty").mkdir()
    run(questions, tmp_path / "empty", heldout=5)
    before = (tmp_path / "empty" / "sft.jsonl").read_bytes()
    for taken in (tmp_path / "empty", tmp_path / "rows.jsonl.gz"):
        with pytest.raises(BadInput, match="already holds something"):
            run(questions, taken, heldout=5, seed=1)
    with pytest.raises(BadInput, match="cannot be written"):
        run(questions, tmp_path / "rows.jsonl.gz" / "below", heldout=5)
    assert (tmp_path / "empty" / "sft.jsonl").read_bytes() == before


def test_a_folder_that_is_filled_meanwhile_is_left_as_it_is(questions, tmp_path):
    def somebody_else(line):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "notes").write_text("mine")

    with pytest.raises(BadInput, match="data: cannot be written: Directory not empty"):
        prepare(questions, tmp_path / "data", PrepareOptions(heldout=5), progress=somebody_else)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "rows.jsonl.gz"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["notes"]


def test_the_command_says_what_it_did_and_what_is_wrong(questions, tmp_path, capsys):
    arguments = ["prepare", questions, str(tmp_path / "data"), "--train", "8", "--heldout", "2", "--objectives", "a, b"]
    assert main([*arguments, "--alpha", "1", "--decimals", "1", "--seed", "3", "--format", "transcripts"]) == 0
    assert "8 to train on, 2 held out; 8 supervised rows" in capsys.readouterr().out
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("mi-epo: ")


def test_what_is_prepared_is_read_by_recipes_and_fits(questions, tmp_path):
    from orchestrator.data import load_prompts
    from orchestrator.tasks.fitting.trainer import load_rows

    run(questions, tmp_path / "data", heldout=5)
    assert len(load_prompts(str(tmp_path / "data" / "prompts" / "heldout.jsonl"), field="prompt")) == 5
    rows = load_rows(str(tmp_path / "data" / "sft.jsonl"), ("prompt", "response"))
    assert len(rows) == 25
