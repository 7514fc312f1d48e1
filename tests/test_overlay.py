"""Runs side by side: one scale for all, whatever each was measured in; what cannot be compared is named."""

import json

import numpy as np
import pytest
from PIL import Image

from orchestrator.bench.overlay import FIGURE, TABLE, figures_table, in_scale, overlay, read_runs
from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.files import write_lines
from orchestrator.run.evaluate import front_metrics
from rewards.normalize import Normalizer
from rewards.simplex import evaluation_grid

REFERENCE = [-3.0, -3.0]


def normalizer(mean, std):
    return Normalizer(objectives=("a", "b"), mean=mean, std=std)


def evaluation(raw, scale, **more):
    """Of raw scores [N, P, K], as a run with this normaliser would have written it."""
    preferences = evaluation_grid(raw.shape[-1])
    record = {"step": 1, "objectives": list(scale.objectives), "preferences": preferences.tolist()}
    record |= front_metrics(preferences, scale.apply(raw), REFERENCE)
    return record | {"reference_point": REFERENCE, "normalizer": scale.to_dict(), "distinct_responses": 1.0} | more


@pytest.fixture
def raw():
    return np.random.default_rng(0).normal(size=(11, 30, 2)) * [2.0, 5.0] + [1.0, -4.0]


OWN, FIRST = normalizer((1.0, -4.0), (2.0, 5.0)), normalizer((0.0, 1.0), (1.5, 4.0))


def test_an_evaluation_in_another_scale_is_what_it_would_have_been_measured_there(raw):
    moved = in_scale(evaluation(raw, OWN), FIRST.to_dict(), REFERENCE)
    there = evaluation(raw, FIRST)
    np.testing.assert_allclose(moved["points"], there["points"])
    for key in ("mip", "hypervolume", "steering_gap", "crd", "spearman", "neighbour_overlap"):
        assert moved[key] == pytest.approx(there[key]), key
    assert in_scale(there, FIRST.to_dict(), REFERENCE) is there


def written(folder, record):
    write_lines(folder / "evaluations.jsonl", [record])
    return folder


def test_two_runs_are_drawn_and_told_with_what_the_second_has_more(tmp_path, raw, capsys):
    one = written(tmp_path / "one", evaluation(raw, FIRST))
    two = written(tmp_path / "two", evaluation(raw + 1, OWN))
    assert main(["compare", str(one), str(two), "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    table = figures_table(read_runs([one, two]))
    assert table[0] == ["metric", "one", "two", "change"]
    (mip,) = (row for row in table if row[0] == "MIP")
    rise = float(np.mean(evaluation_grid(2) @ (1 / np.array(FIRST.std))))  # one more of each raw score
    assert mip[3] == f"{rise:+.3f}" and "MIP" in told
    assert Image.open(tmp_path / "out" / FIGURE).size[0] > 1000
    assert (tmp_path / "out" / TABLE).read_text().startswith("| metric | one | two | change |\n|---|---:|---:|---:|\n")


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, raw):
    runs = [written(tmp_path / part / "run", evaluation(raw, FIRST)) for part in ("a", "b", "c")]
    assert [each.name for each in read_runs(runs)] == ["a-run", "b-run", "c-run"]
    assert len(figures_table(read_runs(runs))[0]) == 4  # no change among three
    with pytest.raises(BadInput, match="compare: needs different runs"):
        read_runs([runs[0], runs[0]])


@pytest.mark.parametrize("count", [3, 4])
def test_more_objectives_have_a_front_for_each_pair(tmp_path, count):
    names = ("a", "b", "c", "d")[:count]
    scale = Normalizer(objectives=names, mean=(0.0,) * count, std=(1.0,) * count)
    grid = evaluation_grid(count)
    raw = np.random.default_rng(1).normal(size=(len(grid), 6, count))
    record = {"step": 1, "objectives": list(names), "preferences": grid.tolist(), "normalizer": scale.to_dict()}
    record |= front_metrics(grid, raw, [-3.0] * count) | {"reference_point": [-3.0] * count}
    runs = [written(tmp_path / name, record) for name in ("one", "two")]
    overlay(runs, tmp_path / "out", say=lambda text: None)
    assert Image.open(tmp_path / "out" / FIGURE).size[1] > 1000


def test_what_cannot_be_compared_is_named(tmp_path, raw, capsys):
    one = written(tmp_path / "one", evaluation(raw, FIRST))
    assert main(["compare", str(one)]) == 2
    assert "compare: needs two runs or more, got 1" in capsys.readouterr().err
    other = json.loads((one / "evaluations.jsonl").read_text()) | {"objectives": ["a", "c"]}
    assert main(["compare", str(one), str(written(tmp_path / "other", other))]) == 2
    assert "objectives must be those of" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(one), str(tmp_path / "empty")]) == 2
    assert "holds no evaluation to compare" in capsys.readouterr().err
