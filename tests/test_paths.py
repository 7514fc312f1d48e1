"""What a path of a recipe, a fit or a command line means: one rule for all of them."""

import json
import os
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.cli import main, parse_arguments
from orchestrator.errors import BadInput
from orchestrator.recipes import dump_recipe, load_recipe
from orchestrator.rows import read_rows
from orchestrator.sections import AssetsConfig
from orchestrator.tasks.fitting.config import PolicyFitConfig, load_fit_config
from orchestrator.tasks.fitting.trainer import require_new_output
from rewards.environment import local_folder
from rewards.paths import find

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"
OPTIMIZATION = {"steps": 1, "batch_size": 1, "learning_rate": 1}
NO_MODELS = [
    *("./none", "../none", "/nowhere/none", "~/none", "~nobody-of-this-name/none"),
    *("$HOME/policy", "a b", "org/policy ", "org/*", "org/model@main", "org/model.git", " ", "a--b", "hub:org/model"),
]
"""What means a folder that is not there, also because no hub could have a model of that name."""
NO_PATHS = {"too long": "x" * 300, "a NUL": "a\0b", "a loop": "loop/x"}


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
@pytest.mark.parametrize("model", NO_MODELS)
def test_a_folder_of_a_fit_that_is_not_there_is_named_and_asked_of_no_hub(project, key, model):
    fit = {"data": "rows.jsonl", "output": "out", "model": "org/start", key: model}
    (project / "fit.yaml").write_text(yaml.safe_dump({**fit, "optimization": OPTIMIZATION}))
    with pytest.raises(BadInput, match=f"fit.yaml: {key}: must be a folder that is there, or a hub id, got "):
        load_fit_config(PolicyFitConfig, project / "fit.yaml")


@pytest.mark.parametrize("model", NO_MODELS)
def test_a_policy_and_a_judge_that_are_not_there_are_named(project, capsys, model):
    path = write_recipe(project / "r.yaml")
    (project / "judges.py").write_text("def brevity(prompts, responses): ...\nfront = x = brevity\n")
    assert main(["plan", str(path), f"policy.model='{model}'", f"objectives.1.scorer.model='{model}'"]) == 2
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


@pytest.mark.parametrize("model", ["org/model", "Org-1/model_2.5", "gpt2", "org/model.v1"])
def test_what_the_hub_could_have_is_a_hub_id_until_a_folder_of_the_name_is_there(project, model):
    assert local_folder(model) is None
    (project / model).mkdir(parents=True)
    assert local_folder(model) == Path(model)


@pytest.mark.parametrize("case", NO_PATHS)
@pytest.mark.parametrize(
    "key",
    ["policy.model", "data.train", "objectives.0.scorer.model", "objectives.0.audit.function", "assets.directory"],
)
def test_a_path_of_a_recipe_that_the_system_cannot_look_up_is_named_with_its_key(project, case, key):
    (project / "loop").symlink_to("loop")
    recipe = write_recipe(project / "r.yaml")
    path = json.dumps(NO_PATHS[case] + (".py:brevity" if key.endswith("function") else ""))
    with pytest.raises(BadInput, match=rf"^[^\n]*r.yaml: {key}: must be a path that can be looked up, got '[^\n]*$"):
        load_recipe(recipe, [f"{key}={path}"])


@pytest.mark.parametrize("case", NO_PATHS)
@pytest.mark.parametrize("key", ["data", "heldout", "output", "model", "tokenizer"])
def test_a_path_of_a_fit_that_the_system_cannot_look_up_is_named_with_its_key(project, case, key):
    (project / "loop").symlink_to("loop")
    fit = {"data": "rows.jsonl", "output": "out", "model": "org/start", key: NO_PATHS[case]}
    with pytest.raises(ValidationError) as refused:
        PolicyFitConfig.model_validate({**fit, "optimization": OPTIMIZATION})
    assert {item["loc"][0] for item in refused.value.errors()} == {key}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["plan", "PATH"], "RECIPE"),
        (["train", "r.yaml", "--run-dir", "PATH"], "--run-dir"),
        (["evaluate", "PATH"], "RUN_OR_MODEL"),
        (["evaluate", "run", "--recipe", "PATH"], "--recipe"),
        (["generate", "PATH", "--prefer", "a=1"], "RUN_OR_MODEL"),
        (["compare", "r.yaml", "--output", "PATH"], "--output"),
        (["results", "PATH", "--output", "page.md"], "RESULTS.json"),
        (["results", "r.json", "--output", "PATH"], "--output"),
        (["miniature", "PATH"], "DIR"),
        (["fit-policy", "PATH"], "CONFIG"),
        (["prepare", "PATH", "out"], "SOURCE"),
        (["prepare", "rows.jsonl", "PATH"], "DIR"),
    ],
)
@pytest.mark.parametrize("path", ["x" * 300, "loop/x", ""])
def test_a_path_of_the_command_line_that_the_system_cannot_look_up_is_refused_in_one_line(
    project, capsys, command, option, path
):
    (project / "loop").symlink_to("loop")
    with pytest.raises(SystemExit) as left:
        main([path if part == "PATH" else part for part in command])
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"mi-epo: argument {option}: must ")


@pytest.mark.parametrize("path", ["rows.jsonl", "rows.jsonl/out", "~nobody-of-this-name/out", "dangling"])
@pytest.mark.parametrize("command", [["train", "r.yaml", "--run-dir"], ["miniature"], ["prepare", "rows.jsonl"]])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(project, capsys, command, path):
    (project / "rows.jsonl").touch()
    (project / "dangling").symlink_to("nowhere")
    with pytest.raises(SystemExit):
        main([*command, path])
    assert capsys.readouterr().err.startswith(f"mi-epo: argument {'--run-dir' if '--run-dir' in command else 'DIR'}: ")
    with pytest.raises(ValidationError, match="output"):
        PolicyFitConfig.model_validate({"output": path, "model": "org/start", "optimization": OPTIMIZATION})
    with pytest.raises(ValidationError, match="directory"):
        AssetsConfig.model_validate({"directory": path})
    assert {file.name for file in project.iterdir()} == {"recipes", "home", "rows.jsonl", "dangling"}


def test_a_folder_that_the_system_refuses_to_make_is_told_before_a_fit_begins():
    with pytest.raises(BadInput, match=r"^/proc/of-this-name/out: cannot be written: "):
        require_new_output("/proc/of-this-name/out")


@pytest.mark.parametrize("command", [["plan", "pipe"], ["fit-policy", "pipe"], ["results", "pipe", "--output", "x.md"]])
def test_what_may_have_no_end_is_not_read(project, capsys, command):
    os.mkfifo(project / "pipe")
    assert main(command) == 2
    assert capsys.readouterr().err == "mi-epo: pipe: must be a file, got a pipe or a device\n"
    for source in ("pipe", "/dev/zero"):
        with pytest.raises(BadInput, match=f"^{source}: must be a file, got a pipe or a device$"):
            list(read_rows(source))
