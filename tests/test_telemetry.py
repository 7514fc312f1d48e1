"""What a run writes about each step."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from actors.types import GenerationRequest, Response, Rollout
from learner.types import StepReport
from orchestrator.files import json_line
from orchestrator.recipes import load_recipe
from orchestrator.run.batching import PairStatistics, RequestBatch, ScoredBatch
from orchestrator.run.monitoring import WandbLog
from orchestrator.run.stages import Probed, Updated
from orchestrator.run.telemetry import Recorder, step_line, step_metrics
from rewards.metrics import STEP_METRICS
from rewards.normalize import Normalizer
from rewards.prompts import Prompt
from tests.test_wandb_log import FakeRun

CONTRACT_KEYS = {
    "step", "policy_version", "loss", "loss_alignment", "loss_identifiability", "grad_norm", "learning_rate",
    "identification_accuracy", "pair_conflict_rate", "pair_tie_rate", "logratio_mean", "response_length",
    "staleness_max", "prompts", "generated_tokens", "learner_tokens", "reward_mean/helpfulness",
    "reward_mean/harmlessness", "reward_std/helpfulness", "reward_std/harmlessness", "seconds/step", "seconds/generate",
    "seconds/score", "seconds/learn", "seconds/sync", "seconds/idle_learner", "sync_bytes",
}  # fmt: skip
RECIPE = load_recipe(
    Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml", ["telemetry.wandb=disabled", "loop.steps=3"]
)
NORMALIZER = Normalizer(objectives=RECIPE.objective_names, mean=(0.0, 0.0), std=(1.0, 1.0))
STATISTICS = PairStatistics(dropped=0, conflict_rate=0.5, tie_rate=0.0)


def scored(scores):
    request = GenerationRequest(
        request_id="r", prompt=Prompt(text="p"), prompt_ids=(1, 2), preference=(0.7, 0.3), num_responses=2, seed=1
    )
    responses = (
        Response(token_ids=(1, 2, 3), text="a", finish_reason="stop", logprobs=(-1.0,)),
        Response(token_ids=(4,), text="b", finish_reason="length", logprobs=(-1.0,)),
    )
    rollout = Rollout(request=request, responses=responses, min_policy_version=0, max_policy_version=0)
    batch = RequestBatch(step=0, requests=(request,), preference_neg=np.array([[0.2, 0.8]]))
    seconds = {"generate": 0.1, "score": 0.2}
    return ScoredBatch(batch=batch, rollouts=(rollout,), scores=np.asarray(scores, dtype=float), seconds=seconds)


def report():
    names = ("loss", "loss_alignment", "loss_identifiability", "grad_norm", "learning_rate", "identification_accuracy")
    return StepReport(step=0, metrics=dict.fromkeys((*names, "logratio_mean"), 0.25), learner_tokens=40)


def test_a_step_writes_every_key_of_the_contract_and_a_sample(tmp_path):
    with Recorder(RECIPE, tmp_path, NORMALIZER) as recorder:
        with recorder.stage("learn"), recorder.stage("idle_learner"):
            pass
        recorder.step(0, 1, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=report()), 0)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert set(metrics) >= CONTRACT_KEYS
    assert {key.partition("/")[0] for key in metrics} == {metric.family for metric in STEP_METRICS}
    assert metrics["reward_mean/helpfulness"] == 2.0
    assert metrics["reward_mean/harmlessness"] == 3.0
    assert metrics["generated_tokens"] == 4
    assert metrics["finished_rate"] == 0.5
    sample = json.loads((tmp_path / "samples.jsonl").read_text())
    assert sample["preference_pos"] == [0.7, 0.3]
    assert sample["preference_neg"] == [0.2, 0.8]
    assert sample["scores"] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_step_without_pairs_has_null_learner_metrics_and_counts_what_was_dropped(tmp_path):
    statistics = PairStatistics(dropped=1, conflict_rate=math.nan, tie_rate=math.nan)
    with Recorder(RECIPE, tmp_path, NORMALIZER) as recorder:
        recorder.step(0, 0, scored(np.full((1, 2, 2), np.nan)), statistics, Updated(), 0)
        assert "1 prompts so far" in recorder.hint()
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert metrics["loss"] is metrics["margin_mean"] is metrics["weighted_reward"] is None
    assert metrics["reward_mean/helpfulness"] is None
    assert metrics["prompts_dropped"] == 1


PROBED = Probed(engine_mismatch=0.25, top_entropy=0.8, top_mass=0.95)


def test_what_a_probe_found_is_written_where_it_was_measured(tmp_path):
    with Recorder(RECIPE, tmp_path, NORMALIZER) as recorder:
        recorder.step(0, 1, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=report(), probed=PROBED), 0)
        recorder.step(1, 2, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=report()), 0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for key, value in (("engine_mismatch", 0.25), ("top_entropy", 0.8), ("top_mass", 0.95)):
        assert [json.loads(line)[key] for line in lines] == [value, None]


def test_what_an_over_optimised_policy_lost_is_counted_from_before_the_run_went_on(tmp_path):
    narrow = Probed(engine_mismatch=0.0, top_entropy=0.19, top_mass=0.8)
    before: list[dict] = [{"top_entropy": None, "top_mass": None}, {"top_entropy": 0.8, "top_mass": 0.95}]
    with Recorder(RECIPE, tmp_path, NORMALIZER, records=before) as recorder:
        recorder.step(0, 1, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=report()), 0)
        recorder.step(1, 2, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=report(), probed=narrow), 0)
        recorder.step(2, 3, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=report()), 0)
    problems = [json.loads(line)["problems"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert problems == [[], ["narrow_tokens", "lost_mass"], []]


def test_missing_scores_are_left_out_of_the_means_not_counted_as_zero():
    metrics = step_metrics(
        0, 0, scored([[[1, np.nan], [3, 4]]]), STATISTICS, Updated(), 0, objectives=RECIPE.objective_names
    )
    assert metrics["reward_mean/harmlessness"] == 4.0


def test_lines_are_strict_json():
    assert json.loads(json_line({"a": float("nan"), "b": [np.float64("inf"), np.int64(2)]})) == {
        "a": None,
        "b": [None, 2],
    }


def test_steps_are_appended_when_a_run_is_resumed(tmp_path):
    for step in range(2):
        with Recorder(RECIPE, tmp_path, NORMALIZER, records=[{}] * step) as recorder:
            recorder.step(step, step + 1, scored(np.ones((1, 2, 2))), STATISTICS, Updated(report=report()), 0)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1]


def test_the_weighted_normalised_score_is_on_the_console_and_in_the_file(tmp_path, capsys):
    with Recorder(RECIPE, tmp_path, NORMALIZER) as recorder:
        recorder.step(0, 1, scored([[[1, 0], [1, 0]]]), STATISTICS, Updated(report=report()), 0)
    assert "loss 0.250  w.reward +0.700  id.acc 0.25 " in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["weighted_reward"] == 0.7


def test_the_line_of_a_step_fits_a_hundred_columns():
    metrics = {"step": 49, "loss": 1.28431, "weighted_reward": 0.7751, "identification_accuracy": 0.81}
    metrics |= {"generated_tokens": 1509, "seconds/step": 1.04, "seconds/generate": 0.5, "seconds/learn": 0.39}
    line = step_line(metrics, 100)
    assert line == (
        "step  50/100  loss 1.284  w.reward +0.775  id.acc 0.81  1451 tok/s  1.04 s (sample 0.50, learn 0.39)"
    )
    slow = {"loss": None, "weighted_reward": -11.5, "seconds/step": 246.9, "seconds/generate": 31.0}
    line = step_line(metrics | slow | {"seconds/learn": 57.6}, 100)
    assert len(line) <= 100 and line.endswith("6 tok/s  247 s (sample 31, learn 58)") and "loss  skip" in line


def test_a_figure_that_only_a_method_knows_is_written_and_one_it_does_not_have_is_no_zero(tmp_path, capsys):
    own = StepReport(step=0, metrics={"loss": 1.0, "clipped_share": 0.5}, learner_tokens=40)
    with Recorder(RECIPE, tmp_path, NORMALIZER) as recorder:
        recorder.step(0, 1, scored([[[1, 2], [3, 4]]]), STATISTICS, Updated(report=own), 0)
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert metrics["clipped_share"] == 0.5 and metrics["identification_accuracy"] is None
    assert "id.acc - " in capsys.readouterr().out


def test_wandb_gets_every_figure_of_a_step_and_of_an_evaluation_by_both_judges(tmp_path):
    run, front = FakeRun(breaks_at="never"), {"mip": 0.9, "hypervolume": 12.0, "spearman": [1.0, 0.5]}
    answer = {"prompt": "why?", "preference": [1.0, 0.0], "response": "so", "scores": [0.5, 0.25]}
    record = {
        "objectives": list(RECIPE.objective_names),
        "step": 1,
        **front,
        "preferences": [[1.0, 0.0]],
        "points": [[3.0, 4.0]],
        "audit": {**front, "points": [[1.0, 2.0]]},
        "examples": [answer],
    }
    picture = tmp_path / "pareto.png"
    Image.new("RGB", (4, 4)).save(picture)
    with Recorder(RECIPE, tmp_path, NORMALIZER) as recorder:
        recorder._wandb = WandbLog(lambda: run, recorder.say)
        recorder.step(0, 1, scored([[[1, 0], [1, 0]]]), STATISTICS, Updated(report=report()), 0)
        recorder.evaluation(record)
        recorder.figures(lambda folder: {"pareto": picture})
    (at, step), (_, told), (_, tables), (_, images) = run.logged
    assert list(images) == ["pareto"] and images["pareto"].format == "png"
    w, reward, audit = ([f"{part}/{name}" for name in RECIPE.objective_names] for part in ("w", "reward", "audit"))
    assert tables["front"].columns == ["step", *w, *reward, *audit]
    assert tables["front"].data == [[1, 1.0, 0.0, 3.0, 4.0, 1.0, 2.0]]
    assert tables["examples"].columns == ["step", "prompt", *w, "response", *reward]
    assert tables["examples"].data == [[1, "why?", 1.0, 0.0, "so", 0.5, 0.25]]
    assert at == 0 and step["weighted_reward"] == 0.7 and step["problems"] == 2 and "seconds/step" in step
    figures = ("mip", "hypervolume", "spearman/helpfulness", "spearman/harmlessness")
    assert set(told) == {
        "evaluation/step",
        *(f"evaluation/{judge}{key}" for judge in ("", "audit/") for key in figures),
    }
    assert told["evaluation/audit/spearman/harmlessness"] == 0.5
