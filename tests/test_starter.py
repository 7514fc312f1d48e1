"""The folder that `mi-epo init` writes is a recipe that runs, with rewards that score."""

import subprocess

import pytest

from orchestrator.cli import main
from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from orchestrator.plan import plan
from orchestrator.recipes import load_recipe
from orchestrator.tasks.starter.my_rewards import brevity, caution
from orchestrator.tasks.starter.starter import write_starter
from tests.whole_runs import command, lines


def test_the_folder_holds_a_recipe_that_can_be_planned_with_twenty_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_starter(tmp_path / "mine")
    assert [file.name for file in files] == ["recipe.yaml", "rewards.py", "train.jsonl", "heldout.jsonl"]
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml")
    assert plan(recipe).refusals == ()
    train, heldout = (load_prompts(path, field="prompt") for path in (recipe.data.train, recipe.data.heldout))
    assert len(train) + len(heldout) == 20 == len({*train, *heldout})
    assert recipe.evaluate.prompts == len(heldout)


def test_its_rewards_score_what_they_say():
    assert brevity(["q", "q"], ["one two three four five six seven", ""]) == [-7.0, -6.0]
    assert caution(["q", "q"], ["never do it , never , ask an expert .", "go on ."]) == [3.0, 0.0]


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="must be a new or an empty folder"):
        write_starter(tmp_path)
    assert main(["init", str(tmp_path)]) == 2
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.ray
@pytest.mark.full
def test_it_is_taught_and_trained_as_it_stands(tmp_path):
    write_starter(tmp_path / "mine")
    few = ["loop.steps=2", "assets.teaching.answers=8", "assets.teaching.epochs=1", "cluster.dashboard=false"]
    asked = command("train", "mine/recipe.yaml", *few, "--run-dir", "run")
    done = subprocess.run(asked, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "answers to learn from" in done.stdout
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1]
