"""YAML that says one thing twice is refused; what merges and aliases bring along is not twice."""

import pytest

from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.tasks.fitting.config import PolicyFitConfig, load_fit_config
from orchestrator.trees import dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learner: {a: 1}\nloop: 2\nlearner: {b: 1}\n", ["learner: must stand once, stands in lines 1 and 3"]),
        ("learner:\n  ranks: 1\n  'ranks': 2\n", ["learner.ranks: must stand once, stands in lines 2 and 3"]),
        (
            "objectives:\n- name: a\n- {name: b, name: c}",
            ["objectives.1.name: must stand once, stands in lines 3 and 3"],
        ),
        (
            "a: 1\na: 2\nb: {c: 1,\n c: 2}\na: 3",
            [
                "a: must stand once, stands in lines 1 and 2",
                "b.c: must stand once, stands in lines 3 and 4",
                "a: must stand once, stands in lines 1 and 5",
            ],
        ),
        ("x: &x {k: 1, k: 2}\ny: *x", ["x.k: must stand once, stands in lines 1 and 1"]),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path, text, said):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as error:
        read_yaml(path)
    assert str(error.value).split("\n") == [f"{path}: {problem}" for problem in said]


def test_a_merge_may_be_changed_and_merged_again():
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\nd: [*a, *b]"
    assert parse_yaml(text, "r") == {
        "a": {"x": 1, "y": 1},
        "b": {"x": 2, "y": 1},
        "c": {"x": 2, "y": 3},
        "d": [{"x": 1, "y": 1}, {"x": 2, "y": 1}],
    }


def test_one_name_in_two_mappings_is_not_twice_and_no_text_is_no_value():
    assert parse_yaml("a: {x: 1}\nb: {x: 1}", "r") == {"a": {"x": 1}, "b": {"x": 1}}
    assert parse_yaml("", "r") is None


def test_recipes_overrides_and_fits_are_read_by_the_same_rules(capsys, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nname: b\n")
    assert main(["plan", str(path)]) == 2
    assert capsys.readouterr().err == f"mi-epo: {path}: name: must stand once, stands in lines 1 and 2\n"
    with pytest.raises(BadInput, match="name: must stand once"):
        load_fit_config(PolicyFitConfig, path)
    path.write_text("name: a\n")
    assert main(["plan", str(path), "learner={ranks: 1, ranks: 2}"]) == 2
    assert "override 'learner={ranks: 1, ranks: 2}': ranks: must stand once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("010", 10), ("008", 8), ("+017", 17), ("1_000", 1000), ("1e-4", 1e-4), ("1E3", 1000.0), ("-.5", -0.5)),
        *(("12:30:45", "12:30:45"), ("1:30", "1:30"), ("0x1F", "0x1F"), ("0b1", "0b1"), ("2024-01-01", "2024-01-01")),
        *(("'1e3'", "1e3"), ("'010'", "010"), ("nan", "nan"), ("1.2.3", "1.2.3"), (".inf", float("inf"))),
    ],
)
def test_numbers_are_decimal_and_what_is_quoted_is_a_text(text, value):
    found = parse_yaml(text, "r")
    assert (found, type(found)) == (value, type(value))


def test_what_is_written_is_read_back_as_it_was():
    tree = {"texts": ["1e3", "010", "1:30", "0x1F", "2024-01-01", "on", "é"], "numbers": [10, 1e-5, 1e22, True, None]}
    assert parse_yaml(dump_yaml(tree), "r") == tree
