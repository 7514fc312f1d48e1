"""What a start that reads w learns from, and what it is built anew for."""

import copy
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import BadInput
from orchestrator.recipes import load_recipe
from orchestrator.sections import AssetsConfig
from orchestrator.tasks.smoke import make_tokenizer
from orchestrator.tasks.teaching.answers import bar, whole_sentences
from orchestrator.tasks.teaching.taught import model_files, some_prompts
from orchestrator.tasks.teaching.teach import (
    correlation_within,
    described_rows,
    judges_within,
    plain_prompt,
    sampling_config,
    score_answers,
    taught_from,
)
from rewards.config import ConditioningConfig
from rewards.environment import native_dtype
from rewards.judge_sections import HuggingFaceScorerConfig, PythonScorerConfig
from tests.written_prompts import plain

RECIPES = Path(__file__).parents[1] / "deploy" / "recipes"
JUDGES = {
    "detail": PythonScorerConfig(function="rewards.functions:detail"),
    "ease": PythonScorerConfig(function="rewards.readability:reading_ease"),
}


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
    rows = described_rows(plain("q", "r"), [["a", "b"], ["c"]], scores, decimals=2)
    assert [(row["prompt"].text, row["response"]) for row in rows] == [("q", "a"), ("q", "b"), ("r", "c")]
    high = 1 / (1 + np.exp(-2 * 2.0))
    assert rows[0]["preference"] == pytest.approx([high, 1 - high], abs=0.005)
    assert rows[1]["preference"] == [0.0, 1.0] and rows[2]["preference"] == [0.5, 0.5]


def test_scores_that_have_nothing_to_do_with_each_other_make_vectors_from_corner_to_corner():
    scores = np.random.default_rng(0).standard_normal((4000, 2))
    weight = np.array(
        [row["preference"][0] for row in described_rows(plain("q"), [["a"] * 4000], [scores], decimals=1)]
    )
    assert (weight == 0).mean() == pytest.approx(1 / 7, abs=0.02) == (weight == 1).mean()
    assert ((weight > 0.25) & (weight < 0.75)).mean() > 0.25


def test_an_answer_without_a_score_is_not_learned_from():
    rows = described_rows(plain("q"), [["a", "b", "c"]], [np.array([[9, np.nan], [0, 1], [1, 0]])], decimals=1)
    assert [row["response"] for row in rows] == ["b", "c"]
    assert described_rows(plain("q"), [["a"]], [np.array([[np.nan, 1]])], decimals=1) == []


def test_a_judge_of_the_assets_is_looked_for_where_they_are_built():
    recipe = load_recipe(RECIPES / "hh-smollm2.yaml")
    judges = judges_within(Path("/building"), recipe)
    harmlessness, other = judges.values()
    assert isinstance(harmlessness, HuggingFaceScorerConfig)
    assert harmlessness.model == "/building/rewards/harmlessness"
    assert list(judges) == list(recipe.objective_names) and other == recipe.objectives[1].scorer


def test_a_prompt_is_asked_without_w_and_with_what_else_the_recipe_writes():
    tokenizer = copy.deepcopy(make_tokenizer())

    def asked(conditioning: ConditioningConfig) -> str:
        return tokenizer.decode(plain_prompt(tokenizer, "Why?", conditioning))

    assert asked(ConditioningConfig()) == "Human: Why? Assistant:"
    assert asked(ConditioningConfig(template="{prompt}\n\n[{weights}]\nAnswer:")) == "Why?\nAnswer:"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}; {% endfor %}"
    brief = ConditioningConfig(style="chat", system="Be brief.", template="{prompt} [{weights}]")
    assert asked(brief) == "system: Be brief.; user: Why?; "
    assert asked(ConditioningConfig(style="chat", system="Heed {weights}.")) == "user: Why?; "


def test_the_model_answers_on_a_gpu_where_the_recipes_engines_have_one_and_else_on_cpu():
    recipe = load_recipe(RECIPES / "smollm2.yaml", ["rollout.num_gpus=1", "learner.num_gpus=1", "rollout.dtype=auto"])
    on_gpu, on_cpu = (sampling_config(recipe, gpu=gpu) for gpu in (True, False))
    assert (on_gpu.num_gpus, on_gpu.dtype, on_gpu.colocated) == (1, "auto", False)
    assert (on_cpu.num_gpus, on_cpu.dtype, on_cpu.threads) == (0, native_dtype(), 2)
    assert on_gpu.temperature == on_cpu.temperature == recipe.rollout.temperature


def test_answers_are_scored_by_the_judges_on_one_scale():
    answers = [
        ["The cat sat. It ran.", "Notwithstanding organisational difficulties, negotiations continued."],
        ["Yes."],
    ]
    scores = score_answers(JUDGES, plain("q", "r"), answers)
    assert [each.shape for each in scores] == [(2, 2), (1, 2)]
    assert np.concatenate(scores).mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert scores[0][0, 1] > scores[0][1, 1]
    with pytest.raises(BadInput, match="objective 'detail': its scorer tells the answers of the start not apart"):
        score_answers(JUDGES, plain("q"), [["Yes.", "Yes."]])


def test_the_prompts_that_are_answered_are_different_ones_drawn_by_the_seed():
    prompts = plain("a", "b", "a", "c", "d")
    assert sorted(prompt.text for prompt in some_prompts(prompts, 9, seed=0)) == ["a", "b", "c", "d"]
    few = some_prompts(prompts, 2, seed=0)
    assert len(set(few)) == 2 and few == some_prompts(prompts, 2, seed=0)
    assert any(some_prompts(prompts, 2, seed=seed) != few for seed in range(1, 9))


def test_a_reward_file_or_a_model_that_changed_is_another_start(tmp_path):
    rewards, model = tmp_path / "rewards.py", tmp_path / "model"
    rewards.write_text("def short(prompts, responses): return [1.0]")
    own = [f"objectives.0.scorer={{type: python, function: '{rewards}:short'}}"]
    recipe = load_recipe(RECIPES / "smollm2.yaml", own)
    before = taught_from(recipe)
    assert taught_from(recipe) == before
    rewards.write_text("def short(prompts, responses): return [2.0]")
    assert taught_from(recipe) != before
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1")
    files = model_files(str(model))
    (model / "model.safetensors").write_bytes(b"12")
    assert list(files) == ["model.safetensors"] and model_files(str(model)) != files
    assert model_files("somebody/model") == {}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"build": "taught"}, "model must be given with build: taught, got null"),
        ({"build": "smollm2", "model": "m"}, "model goes with build: taught, got build 'smollm2', model 'm'"),
        ({"model": "m"}, "model goes with build: taught, got build None"),
        ({"build": "dialogues"}, "source must be given with build: dialogues"),
        ({"build": "taught", "model": "m", "weights": "w"}, "weights goes with build: dialogues or smollm2"),
        ({"build": "miniature", "teaching": {"answers": 3}}, "teaching goes with build: taught, smollm2 or dialogues"),
    ],
)
def test_a_build_is_given_what_it_needs_and_nothing_else(section, told):
    with pytest.raises(ValueError, match=told):
        AssetsConfig.model_validate({"directory": "d", **section})


def test_a_run_that_is_read_again_may_say_the_defaults():
    built = AssetsConfig(directory="d", build="miniature")
    assert AssetsConfig.model_validate(built.model_dump()) == built


def test_vllm_s_bars_are_told_in_lines_but_for_the_rendering_of_prompts():
    told: list[str] = []
    assert bar(told.append, ["a", "b"], desc="Rendering prompts") == ["a", "b"]
    pace = bar(told.append, total=3, desc="Processed prompts", dynamic_ncols=True, postfix="est. speed")
    pace.mininterval = 0.0
    pace.update(1)
    assert told[0].startswith("sampling: 1 of 3 answers, about ")


def test_objectives_that_pull_apart_within_every_question_are_not_called_alike_because_questions_differ():
    apart = np.array([[1.0, -1.0], [-1.0, 1.0], [np.nan, 5.0]])
    scores = [apart, apart + 10, np.full((2, 2), np.nan)]
    assert correlation_within(scores) == pytest.approx(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    together = np.concatenate([apart[:2], apart[:2] + 10])
    assert np.corrcoef(together, rowvar=False)[0, 1] > 0.9
