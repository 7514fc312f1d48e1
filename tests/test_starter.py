"""The folder that `mi-epo init` writes is a recipe that runs, with rewards that score."""

import re
import subprocess

import pytest

from orchestrator.cli import main
from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from orchestrator.plan import plan
from orchestrator.recipes import load_recipe
from orchestrator.run.train import train
from orchestrator.tasks.starter.my_rewards import brevity, caution
from orchestrator.tasks.starter.starter import write_starter
from tests.tiny_models import make_tiny_policy
from tests.whole_runs import command, lines


def test_the_folder_holds_a_recipe_that_can_be_planned_with_twenty_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_starter(tmp_path / "mine")
    assert [file.name for file in files] == ["recipe.yaml", "my_rewards.py", "train.jsonl", "heldout.jsonl"]
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml")
    assert plan(recipe).refusals == ()
    train, heldout = (load_prompts(path, field="prompt") for path in (recipe.data.train, recipe.data.heldout))
    assert len(train) + len(heldout) == 20 == len({*train, *heldout})
    assert recipe.evaluate.prompts == len(heldout)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objectives.0.scorer.function=my_rewards.py:nope", "objectives.0.scorer.function: module"),
        ("objectives.0.scorer={type: huggingface, model: ./nobody}", "objectives.0.scorer.model: folder './nobody'"),
        ("data.train=nope.jsonl", "data.train: nope.jsonl: cannot be read"),
        ("assets.model=./nothing", "assets.model: must be a Hugging Face folder"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_taught(tmp_path, monkeypatch, override, told):
    monkeypatch.chdir(tmp_path)
    write_starter(tmp_path / "mine")
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml", [override])
    [refusal] = plan(recipe).refusals
    assert refusal.startswith(told)
    with pytest.raises(BadInput, match=re.escape(told)):
        train(recipe, tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / ".cache").exists()


def test_a_prompt_is_shown_as_the_model_will_read_it_before_it_is_taught(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_starter(tmp_path / "mine")
    base = make_tiny_policy(tmp_path / "base", vocab=600)
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml", [f"assets.model={base}"])
    planned = plan(recipe)
    assert "longest with w" in planned.text and "not built yet" in planned.text
    assert "unknown until it is here" not in planned.text
    short = plan(load_recipe(tmp_path / "mine" / "recipe.yaml", [f"assets.model={base}", "rollout.max_model_len=33"]))
    assert any("must fit rollout.max_model_len - rollout.max_new_tokens" in line for line in short.refusals)


def test_a_model_of_ones_own_gets_a_recipe_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = make_tiny_policy(tmp_path / "base with spaces", vocab=600)
    assert main(["init", "mine", "--model", str(base)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "mine/recipe.yaml"
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml")
    assert recipe.assets is not None and recipe.assets.model == str(base)
    assert recipe.preferences.conditioning.style == "chat" and recipe.learner.lora is not None
    short = ["rollout.max_model_len=128", "rollout.max_new_tokens=32"]
    [refusal] = plan(load_recipe(tmp_path / "mine" / "recipe.yaml", short)).refusals
    assert "chat template" in refusal  # which a tiny policy has not


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
