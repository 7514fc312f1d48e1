"""Prompts from files and batches from prompts."""

import gzip
import json
import os

import pytest

from orchestrator.data import PromptStream, load_prompts, spread
from orchestrator.errors import BadInput
from orchestrator.rows import read_rows
from rewards.prompts import Prompt, Turn
from tests.written_prompts import plain

ARROW = "data-00000-of-00001.arrow"


def test_plain_and_gzipped_jsonl_give_the_same_prompts(tmp_path):
    prompts = ["how do i {fix} it ?", "zwei\nZeilen — ünïcode \u2603"]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    assert load_prompts(str(tmp_path / "a.jsonl"), field="prompt") == plain(*prompts)
    assert load_prompts(str(tmp_path / "a.jsonl.gz"), field="prompt") == plain(*prompts)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_prompts_keep_what_unicode_calls_line_ends(tmp_path, pack):
    prompts = ["one\u2028two", "three\u2029four\x85five", "six"]
    lines = "\r\n".join(json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts)
    (tmp_path / "a.jsonl.gz").write_bytes(pack(b"\xef\xbb\xbf" + lines.encode()))
    assert load_prompts(str(tmp_path / "a.jsonl.gz"), field="prompt") == plain(*prompts)


def test_half_a_character_in_a_prompt_is_named(tmp_path):
    (tmp_path / "half.jsonl").write_text('{"prompt": "smile \\ud83d"}\n')
    with pytest.raises(BadInput, match=r"half\.jsonl:1: 'prompt' must be whole characters, got half of one"):
        load_prompts(str(tmp_path / "half.jsonl"), field="prompt")


def test_a_datasets_folder_gives_its_prompts(tmp_path):
    from datasets import Dataset

    questions = Dataset.from_dict({"question": ["one", "two\u2028three"], "other": [1, 2]})
    questions.with_format("numpy", columns=["other"]).save_to_disk(str(tmp_path / "set"))
    assert load_prompts(str(tmp_path / "set"), field="question") == plain("one", "two\u2028three")


def truncate(size):
    return lambda folder: os.truncate(folder / ARROW, size)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / ARROW).unlink(), "cannot be read as a datasets folder: .*No such file"),
        (truncate(0), "cannot be read as a datasets folder: "),
        (truncate(10), "cannot be read as a datasets folder: "),
        (truncate(400), "cannot be read as a datasets folder: "),
        (lambda folder: (folder / ARROW).write_text("junk" * 100), "cannot be read as a datasets folder: "),
        (lambda folder: (folder / "state.json").unlink(), r"not one written by datasets.*\(no state\.json\)"),
        (lambda folder: (folder / "dataset_info.json").unlink(), r"not one written by.*\(no dataset_info\.json\)"),
        (lambda folder: (folder / "state.json").write_text("{"), "cannot be read as a datasets folder: "),
        (lambda folder: (folder / "state.json").write_text("[]"), "cannot be read as a datasets folder: "),
        (lambda folder: (folder / "dataset_info.json").write_text(""), "cannot be read as a datasets folder: "),
    ],
)
def test_a_broken_datasets_folder_is_said_in_one_line(tmp_path, damage, said):
    from datasets import Dataset

    folder = tmp_path / "set"
    Dataset.from_dict({"prompt": ["one", "two"] * 20}).save_to_disk(str(folder))
    damage(folder)
    with pytest.raises(BadInput, match=f"^{folder}: .*{said}") as error:
        load_prompts(str(folder), field="prompt")
    assert "\n" not in str(error.value)


def test_a_datasets_folder_of_several_splits_is_told_with_their_names(tmp_path):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_dict({"prompt": ["one"]})
    DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "sets"))
    with pytest.raises(BadInput, match=r"got a DatasetDict; name one of its splits: test, train$"):
        load_prompts(str(tmp_path / "sets"), field="prompt")
    assert load_prompts(str(tmp_path / "sets" / "test"), field="prompt") == plain("one")


def test_a_column_that_is_not_there_or_holds_no_text_is_named(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"question": ["one"], "prompt": [7]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(BadInput, match=r"'text' must be a non-empty text, got None; the row has 'question', 'prompt'$"):
        load_prompts(str(tmp_path / "set"), field="text")
    with pytest.raises(BadInput, match=r"set:0: 'prompt' must be a non-empty text, got 7$"):
        load_prompts(str(tmp_path / "set"), field="prompt")


def test_a_broken_line_is_named_by_file_and_number(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(BadInput, match=r"broken\.jsonl:2: not valid JSON"):
        load_prompts(str(path), field="prompt")
    path.write_text('{"prompt": "a"}\n[1]\n')
    with pytest.raises(BadInput, match=r"broken\.jsonl:2: must be a JSON object"):
        load_prompts(str(path), field="prompt")
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n')
    with pytest.raises(BadInput, match=r"broken\.jsonl:2: not valid JSON: the key 'prompt' must stand once, stands 2"):
        load_prompts(str(path), field="prompt")


@pytest.mark.parametrize("row", [{}, {"prompt": ""}, {"prompt": "  "}, {"prompt": 3}])
def test_a_row_without_a_prompt_is_named(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=r"rows\.jsonl:1: 'prompt' must be a non-empty text"):
        load_prompts(str(path), field="prompt")


def test_missing_empty_and_damaged_files_are_named(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_prompts(str(tmp_path / "none.jsonl"), field="prompt")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadInput, match="holds no prompts"):
        load_prompts(str(tmp_path / "empty.jsonl"), field="prompt")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(BadInput, match="UTF-8"):
        load_prompts(str(tmp_path / "latin.jsonl"), field="prompt")
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:30])
    with pytest.raises(BadInput, match="cannot be read"):
        list(read_rows(str(tmp_path / "half.jsonl.gz")))


def rows_of(path):
    return [row for _, row in read_rows(str(path))]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": 'say "a, b"\nand c', "answer": "7"}, {"prompt": "zwei", "answer": "8"}]
    texts = {
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.json": json.dumps(rows, indent=2),
        "lines.json": "\n".join(map(json.dumps, rows)),
        "a.csv": 'prompt,answer\r\n"say ""a, b""\nand c",7\r\n\r\nzwei,8\r\n',
        "a.tsv": 'prompt\tanswer\n"say ""a, b""\nand c"\t7\nzwei\t8\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig", newline="")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        assert rows_of(tmp_path / name) == rows_of(tmp_path / f"{name}.gz") == rows, name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == rows
    (tmp_path / "a.txt").write_text("one\n\n two \r\n")
    assert load_prompts(str(tmp_path / "a.txt"), field="prompt") == plain("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "prompt,answer\na,b\na\n", r"a\.csv:3: must have 2 cells, as the first row has, got 1$"),
        ("a.csv", "prompt,answer\na,b,c\n", r"a\.csv:2: must have 2 cells, as the first row has, got 3$"),
        ("a.csv", "prompt,prompt\na,b\n", r"a\.csv:1: the first row must name every column, each once, got "),
        ("a.csv", "prompt,\na,b\n", r"a\.csv:1: the first row must name every column, each once, got "),
        ("a.csv", 'prompt\n"a\nb\n', r"a\.csv:2: not valid CSV: unexpected end of data"),
        ("a.csv", 'prompt\n"a" b\n', r"a\.csv:2: not valid CSV: "),
        ("a.csv", "", "holds no prompts"),
        ("a.json", '[{"prompt": "a"},\n3]', r"a\.json: row 2: must be a JSON object, got int"),
        ("a.json", '[{"prompt": "a"},\n{"b"}]', r"a\.json: not valid JSON: .* in line 2"),
        ("a.json", "[]", "holds no prompts"),
        ("a.parquet", "PAR1 and junk", r"a\.parquet: cannot be read as Parquet: "),
        ("a.parquet", "", r"a\.parquet: cannot be read as Parquet: "),
    ],
)
def test_a_broken_file_of_another_kind_is_named_with_the_place(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=said) as error:
        load_prompts(str(tmp_path / name), field="prompt")
    assert "\n" not in str(error.value)


def test_a_hub_source_must_name_three_parts():
    with pytest.raises(BadInput, match=r"must read hub:NAME:DATA_DIR:SPLIT, got 'hub:one:two'"):
        list(read_rows("hub:one:two"))


def message(role, content):
    return {"role": role, "content": content}


def written(tmp_path, *rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


def test_a_dialogue_is_read_up_to_what_the_person_says_last(tmp_path):
    said = [
        message("system", "Be kind."),
        message("user", "hi"),
        message("assistant", "Hello!"),
        message("user", "why?"),
    ]
    path = written(
        tmp_path, {"messages": said}, {"messages": [*said, message("assistant", "because")]}, {"messages": "why?"}
    )
    earlier = (Turn(role="system", content="Be kind."), Turn(role="user", content="hi"))
    dialogue = Prompt(text="why?", earlier=(*earlier, Turn(role="assistant", content="Hello!")))
    assert load_prompts(path, field="messages") == [dialogue, dialogue, *plain("why?")]
    assert dialogue.plain == "hi\n\nAssistant: Hello!\n\nHuman: why?"
    assert Prompt(text="why?", earlier=earlier[:1]).plain == "why?"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must hold a message of the user's, and none but an answer after it, got none"),
        ([message("assistant", "Hello!")], "must hold a message of the user's"),
        ([message("user", "a"), message("user", "b")], "of user and assistant in turn, .* got user, user"),
        ([message("user", "a"), message("system", "b"), message("user", "c")], "in turn, .* got user, system, user"),
        ([message("user", "a"), message("assistant", "b"), message("assistant", "c")], "got user, assistant$"),
        ([message("user", " ")], r"message 0 must be .*'content': a non-empty text\}, got "),
        ([message("human", "a")], "message 0 must be .*'role': system or user or assistant"),
        ([message("user", [{"type": "text"}])], "message 0 must be "),
        (["a"], "message 0 must be .* got 'a'"),
    ],
)
def test_what_is_no_dialogue_is_named(tmp_path, messages, said):
    with pytest.raises(BadInput, match=rf"rows\.jsonl:1: 'prompt' as a dialogue .*{said}"):
        load_prompts(written(tmp_path, {"prompt": messages}), field="prompt")


def test_the_columns_that_a_judge_asks_for_come_with_the_prompt(tmp_path):
    path = written(tmp_path, {"prompt": "2 + 2?", "answer": 4, "other": 1})
    [prompt] = load_prompts(path, field="prompt", columns=["answer"])
    assert dict(prompt.columns) == {"answer": 4}
    with pytest.raises(BadInput, match=r":1: 'level' must be there, as a judge asks for it; the row has 'prompt', "):
        load_prompts(path, field="prompt", columns=["level"])


def test_every_prompt_comes_once_per_epoch_in_an_order_of_its_own():
    stream = PromptStream(10, batch_size=4, seed=0)
    drawn = [index for step in range(5) for index in stream.batch(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_a_batch_depends_only_on_seed_and_step():
    assert PromptStream(10, batch_size=4, seed=0).batch(7) == PromptStream(10, batch_size=4, seed=0).batch(7)
    assert PromptStream(1000, batch_size=4, seed=0).batch(7) != PromptStream(1000, batch_size=4, seed=1).batch(7)


def test_spread_keeps_the_ends_and_the_order():
    assert spread(range(11), 5) == [0, 2, 5, 8, 10]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([1, 2, 3], 1) == [1]
