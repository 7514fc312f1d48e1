"""Functions of a user's own, named by file: found whatever their name, and sent to where they run."""

import pytest

from actors.reward import RewardActor
from orchestrator.cli import main
from orchestrator.packages import clash
from orchestrator.recipes import load_recipe, override
from rewards.config import ObjectiveConfig
from rewards.judge_sections import PythonScorerConfig
from rewards.scorers import PythonScorer, ScorerError, load_function
from rewards.sources import files_of
from tests.test_paths import MINIATURE

BREVITY = "def brevity(prompts, responses):\n    return [-len(response) for response in responses]\n"


def test_a_function_is_found_in_its_file_even_one_that_is_called_as_our_package(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "from words import count\n\ndef words(p, r):\n    return [count(x) for x in r]\n"
    )
    (tmp_path / "words.py").write_text("def count(text):\n    return len(text.split())\n")
    scorer = PythonScorer(PythonScorerConfig(function=f"{tmp_path}/rewards.py:words"))
    assert scorer.score(["p"], ["two words"]).tolist() == [2]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffdef words(p, r): return [len('é')]\n".encode(),
        "# coding: latin-1\ndef words(p, r): return [len('é')]\n".encode("latin-1"),
    ],
)
def test_a_file_is_read_in_the_encoding_that_python_reads_it_in(tmp_path, text):
    (tmp_path / "mine.py").write_bytes(text)
    assert load_function(f"{tmp_path}/mine.py:words")(["p"], ["r"]) == [1]


def test_functions_of_one_file_share_its_module(tmp_path):
    (tmp_path / "two.py").write_text("made = []\ndef a(): made.append(1)\ndef b(): return len(made)\n")
    load_function(f"{tmp_path}/two.py:a")()
    assert load_function(f"{tmp_path}/two.py:b")() == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "FileNotFoundError"),
        ("def brevity(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("x = 1\n", r"mine\.py'? .*has no 'brevity'"),
        ("brevity = 1\n", "must be a function, got int"),
    ],
)
def test_a_file_that_gives_no_function_is_said_in_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ScorerError, match=said) as error:
        load_function(f"{tmp_path}/mine.py:brevity")
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_the_users_is_named_by_its_file():
    with pytest.raises(ScorerError, match=r"module 'types' \(.*types\.py\) has no 'brevity'"):
        load_function("types:brevity")


def test_a_reward_actor_judges_by_a_file_that_its_node_does_not_have(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BREVITY)
    objective = ObjectiveConfig(name="short", scorer=PythonScorerConfig(function=f"{file}:brevity"))
    files = files_of((objective,))
    file.unlink()
    assert files == {str(file): BREVITY}
    with pytest.raises(ScorerError, match="FileNotFoundError"):
        RewardActor((objective,)).ready()
    RewardActor((objective,), files).ready()
    assert load_function(f"{file}:brevity")(["p"], ["four"]) == [-4]
    assert files_of((ObjectiveConfig(name="a", scorer=PythonScorerConfig(function="math:sqrt")),)) == {}


@pytest.mark.parametrize("name", ["rewards.py", "actors.py", "learner/__init__.py", "orchestrator.py"])
def test_a_file_of_the_users_with_the_name_of_a_package_is_said_in_one_line(tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "r.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mi-epo: {tmp_path / name}: must not have the name of a package of mi-epo")
    assert said.count("\n") == 1


def test_a_checkout_and_a_folder_of_reward_models_clash_with_nothing(tmp_path):
    assert clash(MINIATURE.parents[2]) is None
    (tmp_path / "rewards").mkdir()
    assert clash(tmp_path) is None


@pytest.mark.parametrize("function", ["rewards.py:brevity", "rewards.functions.py:brevity", "./mine.py:brevity"])
def test_a_file_is_never_one_of_our_own_functions(function):
    recipe = override(load_recipe(MINIATURE), [f"objectives.0.audit.function={function}"])
    assert recipe.reaches_outside() == [function]
