"""The paper's recipes from start to end with tiny models: every template, judge, head, adapter and rank in place."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput
from orchestrator.recipes import load_recipe
from orchestrator.tasks.fitting.config import PolicyFitConfig, load_fit_config
from orchestrator.tasks.smoke import smoke_recipe
from rewards.judges import build_scorer
from tests.whole_runs import REPOSITORY, command, lines

RECIPES = REPOSITORY / "deploy" / "recipes"
PAPER = ("safety-alpaca7b", "helpful-qwen3-8b", "helpful-qwen3-8b-3")
SMALL = ("smollm2-gpu", "qwen3-0.6b-1gpu")


@pytest.mark.parametrize("name", PAPER)
def test_a_small_recipe_keeps_what_is_the_recipes_own(name, tmp_path):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    small = smoke_recipe(recipe, tmp_path)
    assert (small.method, small.objective_names, small.preferences) == (
        recipe.method,
        recipe.objective_names,
        recipe.preferences,
    )
    kept = ("zero_stage", "lora", "schedule", "learning_rate", "gradient_checkpointing")
    assert [getattr(small.learner, key) for key in kept] == [getattr(recipe.learner, key) for key in kept]
    assert small.learner.ranks == 2 and not small.learner.num_gpus and not small.rollout.num_gpus
    for before, after in zip(recipe.objectives, small.objectives, strict=True):
        made_small = {"model", "dtype", "device"}
        assert after.scorer.model_dump(exclude=made_small) == before.scorer.model_dump(exclude=made_small)


def test_small_judges_differ_and_keep_their_sign(tmp_path):
    helpful, harmless = smoke_recipe(load_recipe(RECIPES / "safety-alpaca7b.yaml"), tmp_path).objectives
    scores = [build_scorer(each.scorer).score(["How?"], ["Like this."])[0] for each in (helpful, harmless)]
    assert scores[0] != scores[1]
    plain: Any = harmless.scorer.model_copy(update={"negate": False})
    assert build_scorer(plain).score(["How?"], ["Like this."])[0] == -scores[1]


def test_servers_are_not_asked(tmp_path):
    served = load_recipe(
        RECIPES / "helpful-qwen3-8b.yaml", ["objectives.0.scorer={type: http, url: 'http://reward.example/score'}"]
    )
    assert smoke_recipe(served, tmp_path).reaches_outside() == []


def test_an_architecture_that_cannot_be_known_is_named(tmp_path):
    recipe = load_recipe(RECIPES / "helpful-qwen3-8b.yaml", [f"policy.model={tmp_path}/none"])
    with pytest.raises(BadInput, match=r"--smoke: the architecture of '.*/none' cannot be known here"):
        smoke_recipe(recipe, tmp_path / "smoke")


@pytest.mark.parametrize(
    ("name", "fitted_by"),
    [*zip(PAPER, PAPER, strict=True), *((name, name) for name in SMALL), ("qwen3-8b-1gpu", "helpful-qwen3-8b")],
)
def test_the_supervised_stage_writes_w_as_the_recipe_does(name, fitted_by):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    fit = load_fit_config(PolicyFitConfig, REPOSITORY / "deploy" / "fits" / f"{fitted_by}.yaml")
    assert fit.preferences.conditioning == recipe.preferences.conditioning
    assert fit.objectives == recipe.objective_names and fit.model == recipe.policy.model
    assert fit.lora == recipe.learner.lora and fit.max_length == recipe.rollout.max_model_len


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "steps"), [pytest.param("safety-alpaca7b", 4, marks=pytest.mark.full), ("helpful-qwen3-8b-3", 3)]
)
def test_a_paper_recipe_runs_from_start_to_end(name, steps, tmp_path):
    run = tmp_path / "run"
    asked = command("train", RECIPES / f"{name}.yaml", "--smoke", "--run-dir", run)
    path = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    subprocess.run(asked, cwd=tmp_path, check=True, timeout=300, env={**os.environ, "PYTHONPATH": path})
    assert [record["step"] for record in lines(run / "metrics.jsonl")] == list(range(steps))
    assert all(record["sync_bytes"] for record in lines(run / "metrics.jsonl"))
    assert (Path(run) / "policy" / "model.safetensors").exists() and (run / "report" / "report.html").exists()
