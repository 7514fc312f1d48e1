"""What is wrong with a model folder is one line before anything of it is loaded, and nothing in it is ever run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from rewards.config import HuggingFaceScorerConfig
from rewards.judges import build_scorer, check_scorer
from rewards.model_files import ModelError
from rewards.pretrained import load_config, load_model, load_tokenizer
from rewards.scorers import ScorerError
from tests.test_plan_and_cli import recipe_tree
from tests.tiny_models import make_tiny_classifier, make_tiny_policy

CODE = "import pathlib\npathlib.Path(__file__).with_name('was-run').touch()\nclass Own: pass\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_policy(folder / "policy")
    make_tiny_classifier(folder / "judge")
    return folder


@pytest.fixture
def workplace(models: Path, tmp_path: Path) -> Path:
    """A policy and a judge to break, and a recipe that names them."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    for name in ("train", "heldout"):
        lines = [json.dumps({"prompt": f"t{20 + i} t{30 + i}"}) + "\n" for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    tree = recipe_tree(tmp_path)
    tree["objectives"][1]["scorer"] = {"type": "huggingface", "model": str(tmp_path / "judge"), "max_length": 64}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], workplace: Path, *overrides: str) -> str:
    """What `mi-epo plan` refuses the recipe with: one line, or nothing."""
    code = main(["plan", str(workplace / "recipe.yaml"), *overrides])
    said = capsys.readouterr().err
    assert (code, said.count("\n"), "Traceback" in said) == ((2, 1, False) if said else (0, 0, False))
    return said


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_folders_that_all_these_are_changes_of_are_good(capsys, workplace):
    assert planned(capsys, workplace) == ""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions put to whoever sits at the terminal, who would say yes."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    return questions


def name_code(folder: Path, file: str) -> None:
    """Make a file of the folder name code beside it as its own, as a model of unknown classes does."""
    (folder / "own.py").write_text(CODE)
    kind = {"config.json": "AutoConfig", "tokenizer_config.json": "AutoTokenizer"}[file]
    own: Any = ["own.Own", None] if kind == "AutoTokenizer" else "own.Own"
    change_json(folder / file, auto_map={kind: own}, tokenizer_class="OwnTokenizer", model_type="own")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("model", "place"), [("policy", "policy.model"), ("judge", "objectives.1.scorer.model")])
def test_code_in_a_model_folder_is_refused_and_neither_run_nor_asked_about(
    capsys, workplace, asked, file, model, place
):
    name_code(workplace / model, file)
    said = planned(capsys, workplace)
    assert said.startswith(f"mi-epo: {place}: {workplace / model / file}: must name no code, which is never run here")
    loads: list[Callable[[str], Any]] = [load_tokenizer, load_config]
    loads += [lambda name: load_model("AutoModelForCausalLM", name, head="whole")]
    for load in loads:
        with pytest.raises(ModelError, match="must name no code"):
            load(str(workplace / model))
    assert asked == [] and not (workplace / model / "was-run").exists()


@pytest.mark.parametrize("command", ["fit-policy", "fit-reward"])
@pytest.mark.parametrize(("file", "place"), [("config.json", "model"), ("tokenizer_config.json", "tokenizer")])
def test_a_fit_from_a_folder_with_code_is_refused_too(capsys, workplace, asked, command, file, place):
    name_code(workplace / "policy", file)
    row = {"prompt": "t20", "response": "t21", "chosen": "t22", "rejected": "t23"}
    (workplace / "rows.jsonl").write_text(json.dumps(row) + "\n")
    fit = {
        **{"data": str(workplace / "rows.jsonl"), "output": str(workplace / "out"), "heldout_fraction": 0},
        **{"model": str(workplace / "policy"), "tokenizer": str(workplace / "judge") if place == "model" else None},
        "optimization": {"steps": 1, "batch_size": 1, "learning_rate": 0.1},
    }
    (workplace / "fit.yaml").write_text(yaml.safe_dump(fit))
    assert main([command, str(workplace / "fit.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"mi-epo: {place}: {workplace / 'policy' / file}: must name no code" in said
    assert asked == [] and not (workplace / "policy" / "was-run").exists() and not (workplace / "out").exists()


def test_answers_of_a_policy_with_code_are_refused(capsys, workplace, asked):
    name_code(workplace / "policy", "tokenizer_config.json")
    steered = {"objectives": ["a", "b"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0}
    (workplace / "policy" / "mi_epo.json").write_text(json.dumps(steered))
    arguments = ["--prefer", "a=1", "--prefer", "b=0", "--prompt", "t20"]
    assert main(["generate", str(workplace / "policy"), *arguments]) == 2
    assert "must name no code" in capsys.readouterr().err and asked == []


def test_a_kernel_that_a_folder_wants_from_a_hub_is_refused(capsys, workplace):
    change_json(workplace / "policy" / "config.json", attn_implementation="somebody/attention")
    assert "attn_implementation must be no kernel of a hub" in planned(capsys, workplace)
