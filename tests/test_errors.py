"""What is said of an error fits on one line."""

from rewards.environment import MAX_MESSAGE_CHARS, describe, one_line


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("first\n   second\n")) == "first second"


def test_an_error_without_a_message_says_its_kind() -> None:
    assert one_line(KeyError()) == describe(KeyError()) == "KeyError"


def test_a_long_message_is_cut_where_one_can_see_it() -> None:
    said = one_line(ValueError("x" * 1000))
    assert len(said) == MAX_MESSAGE_CHARS and said.endswith("x...")


def test_somebody_elses_error_is_described_by_kind_and_first_line() -> None:
    assert describe(OSError("no such model\nfor help see ...")) == "OSError: no such model"
