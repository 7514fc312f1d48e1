"""Lines of JSON that any reader of lines can read, and files that others wrote in their own way."""

import gzip

import pytest

from orchestrator.errors import BadInput
from orchestrator.files import json_line, keep_lines, last_lines, read_lines, text_lines

LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\nk"
"""Every character at which str.splitlines() cuts."""


def test_a_record_is_one_line_for_every_reader_and_says_the_same(tmp_path):
    line = json_line({"text": LINE_ENDS, "kept": "\u00fcn\u00efc\u00f6de \u2603"})
    assert line.splitlines(keepends=True) == [line]
    assert "\u00fcn\u00efc\u00f6de \u2603" in line
    (tmp_path / "lines.jsonl").write_text(line, encoding="utf-8")
    assert read_lines(tmp_path / "lines.jsonl") == [{"text": LINE_ENDS, "kept": "\u00fcn\u00efc\u00f6de \u2603"}]


def test_half_a_character_can_be_written_and_read(tmp_path):
    (tmp_path / "lines.jsonl").write_text(json_line({"text": "\ud83d"}), encoding="utf-8")
    assert read_lines(tmp_path / "lines.jsonl") == [{"text": "\ud83d"}]


def test_lines_that_others_wrote_are_read_with_their_line_ends_inside_texts(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 0, "text": "a\u2028b"}\n{"step": 1, "text": "c\x85d"}\n{"step": 2}\n', encoding="utf-8")
    assert [record["step"] for record in read_lines(path)] == [0, 1, 2]
    keep_lines(path, lambda record: record["step"] <= 1)
    assert [record["text"] for record in read_lines(path)] == ["a\u2028b", "c\x85d"]


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
@pytest.mark.parametrize("begins", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_text_is_the_same_lines_from_every_system_zipped_or_not(tmp_path, packed, begins, ends):
    (tmp_path / "text").write_bytes(packed(begins + "a\u2028b".encode() + ends + b"c" + ends))
    assert list(text_lines(tmp_path / "text")) == ["a\u2028b", "c"]


def test_a_line_that_is_no_json_is_named_by_its_number_unless_a_kill_cut_it_short(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n\n{oops\n{"a": 2}\n{"a": ')
    with pytest.raises(BadInput, match=r"lines\.jsonl:3: is no JSON"):
        read_lines(path)
    path.write_text('{"a": 1}\n{"a": ')
    assert read_lines(path) == [{"a": 1}]


def test_a_damaged_archive_is_named(tmp_path):
    whole = bytearray(gzip.compress(b'{"prompt": "a"}\n' * 100))
    whole[14] ^= 255
    (tmp_path / "a.gz").write_bytes(whole)
    with pytest.raises(BadInput, match=r"a\.gz: cannot be read: "):
        list(text_lines(tmp_path / "a.gz"))


def test_the_end_of_a_log_is_its_last_lines_whatever_bytes_they_hold(tmp_path):
    (tmp_path / "log").write_bytes(b"first\nsecond \xff\nlast \xe2\x80\xa8 one\n\n")
    assert last_lines(tmp_path / "log", 2) == ["second \ufffd", "last \u2028 one"]
