"""What a path of a recipe, a fit or a command line means: one rule for all of them."""

import os
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main, parse_arguments
from orchestrator.config import AssetsConfig
from orchestrator.errors import BadInput
from orchestrator.recipes import dump_recipe, load_recipe
from orchestrator.tasks.fitting.config import PolicyFitConfig, load_fit_config
from rewards.environment import local_folder
from rewards.paths import find

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"
OPTIMIZATION = {"steps": 1, "batch_size": 1, "learning_rate": 1}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with a recipe in a folder of it, and a home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "home").mkdir()
    return tmp_path


def write_recipe(path):
    tree = yaml.safe_load(MINIATURE.read_text())
    del tree["assets"]
    tree["policy"]["model"] = "start"
    tree["data"] = {"train": "train.jsonl", "heldout": "~/heldout.jsonl"}
    for objective in tree["objectives"]:
        objective["scorer"] = {"type": "huggingface", "model": "org/judge"}
        objective["audit"] = {"type": "python", "function": "./judges.py:brevity"}
    tree["evaluate"] = {"attainable": "judges.py:front", "audit_statistics": {"x": "judges.py:x", "y": "math:sqrt"}}
    path.write_text(yaml.safe_dump(tree))
    return path


def paths_of(recipe):
    first = recipe.objectives[0]
    found = [recipe.policy.model, recipe.data.train, first.scorer.model, first.audit.function]
    return [*found, recipe.evaluate.attainable, recipe.evaluate.audit_statistics["x"]]


def test_a_relative_path_is_what_lies_beside_the_recipe_else_in_the_working_directory(project):
    recipe = write_recipe(project / "recipes" / "r.yaml").relative_to(project)
    functions = ["./judges.py:brevity", "judges.py:front", "judges.py:x"]
    assert paths_of(load_recipe(recipe)) == ["start", "train.jsonl", "org/judge", *functions]
    for name in ("start", "train.jsonl", "org/judge", "judges.py"):
        (project / name).mkdir(parents=True)
    assert paths_of(load_recipe(recipe)) == ["start", "train.jsonl", "org/judge", *functions]
    for name in ("start", "train.jsonl", "org/judge", "judges.py"):
        (project / "recipes" / name).mkdir(parents=True)
    beside = ["recipes/start", "recipes/train.jsonl", "recipes/org/judge"]
    functions = ["recipes/judges.py:brevity", "recipes/judges.py:front", "recipes/judges.py:x"]
    assert paths_of(load_recipe(recipe)) == [*beside, *functions]
    assert load_recipe(recipe, ["policy.model=./start"]).policy.model == "recipes/start"
    assert load_recipe(recipe).evaluate.audit_statistics["y"] == "math:sqrt"


def test_a_recipe_in_the_working_directory_says_the_same_before_and_after_its_files_are_there(project):
    recipe = write_recipe(project / "r.yaml").relative_to(project)
    before = load_recipe(recipe)
    (project / "start").mkdir()
    assert load_recipe(recipe) == before


def test_the_home_folder_is_expanded_in_every_path(project):
    recipe = load_recipe(
        write_recipe(project / "recipes" / "r.yaml"),
        [
            "policy.model=~/policy",
            "objectives.0.scorer.model=~/judge",
            "objectives.0.audit.function=~/judges.py:brevity",
            "assets.directory=~/assets-{seed}",
            "data.train='{assets}/train.jsonl'",
            "seed=3",
        ],
    )
    home = str(project / "home")
    assert paths_of(recipe)[:4] == [
        f"{home}/policy",
        f"{home}/assets-3/train.jsonl",
        f"{home}/judge",
        f"{home}/judges.py:brevity",
    ]
    assert (recipe.data.train, recipe.data.heldout) == (f"{home}/assets-3/train.jsonl", f"{home}/heldout.jsonl")


def test_what_assets_stands_for_is_found_once(project):
    (project / "recipes" / "built").mkdir()
    (project / "built").mkdir()
    (project / "built" / "policy").mkdir()
    recipe = write_recipe(project / "recipes" / "r.yaml").relative_to(project)
    loaded = load_recipe(recipe, ["assets.directory=built", "policy.model='{assets}/policy'"])
    assert loaded.assets == AssetsConfig(directory="recipes/built")
    assert loaded.policy.model == "recipes/built/policy"


def test_a_runs_own_recipe_never_means_what_the_run_made(project):
    recipe = load_recipe(write_recipe(project / "recipes" / "r.yaml"), ["policy.model=policy"])
    (project / "run" / "policy").mkdir(parents=True)
    (project / "run" / "run.json").write_text("{}")
    (project / "run" / "config.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(project / "run" / "config.yaml") == recipe


def test_a_fit_finds_its_paths_by_the_same_rule(project):
    fit = {"data": "rows.jsonl", "output": "~/out", "model": "start", "optimization": OPTIMIZATION}
    (project / "recipes" / "fit.yaml").write_text(yaml.safe_dump(fit))
    (project / "recipes" / "rows.jsonl").touch()
    (project / "recipes" / "start").mkdir()
    config = load_fit_config(PolicyFitConfig, Path("recipes/fit.yaml"))
    assert (config.data, config.model) == ("recipes/rows.jsonl", "recipes/start")
    assert config.output == str(project / "home" / "out")


@pytest.mark.parametrize("key", ["model", "tokenizer"])
@pytest.mark.parametrize("model", ["./none", "../none", "/nowhere/none", "~/none", "~nobody-of-this-name/none"])
def test_a_folder_of_a_fit_that_is_not_there_is_named_and_asked_of_no_hub(project, key, model):
    fit = {"data": "rows.jsonl", "output": "out", "model": "org/start", key: model}
    (project / "fit.yaml").write_text(yaml.safe_dump({**fit, "optimization": OPTIMIZATION}))
    with pytest.raises(BadInput, match=f"fit.yaml: {key}: folder '.*none' does not exist$"):
        load_fit_config(PolicyFitConfig, project / "fit.yaml")


@pytest.mark.parametrize("model", ["./none", "../none", "/nowhere/none", "~/none", "~nobody-of-this-name/none"])
def test_a_policy_and_a_judge_that_are_not_there_are_named(project, capsys, model):
    path = write_recipe(project / "r.yaml")
    (project / "judges.py").write_text("def brevity(prompts, responses): ...\nfront = x = brevity\n")
    assert main(["plan", str(path), f"policy.model={model}", f"objectives.1.scorer.model={model}"]) == 2
    said = capsys.readouterr().err
    expanded = os.path.expanduser(model)
    assert f"policy.model: must be a Hugging Face folder (no config.json), got '{expanded}'" in said
    assert f"objectives.1.scorer.model: folder '{expanded}' does not exist" in said


def test_paths_of_the_command_line_are_expanded(project):
    home = project / "home"
    assert parse_arguments(["train", "~/r.yaml", "--run-dir=~/run"]).recipe == f"{home}/r.yaml"
    assert parse_arguments(["train", "~/r.yaml", "--run-dir=~/run"]).run_dir == home / "run"
    assert parse_arguments(["evaluate", "~/run", "--recipe=~/r.yaml"]).target == home / "run"
    assert parse_arguments(["generate", "~/run", "--prefer", "a=1"]).target == home / "run"
    assert parse_arguments(["prepare", "~/rows.jsonl", "~/out"]).source == f"{home}/rows.jsonl"
    assert parse_arguments(["prepare", "hub:a/b::train", "out"]).source == "hub:a/b::train"


def test_absolute_paths_hub_ids_and_nothing_stay_as_they_are(project):
    for path in (str(project / "x"), "org/model", "hub:org/rows::train", ""):
        assert find(path, project / "recipes") == path
    assert local_folder("~nobody-of-this-name/model") == Path("~nobody-of-this-name/model")
