"""The whole pipeline at a tiny size, as a user runs it: real vLLM, DeepSpeed, Ray actors and reward models."""

import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pytest

from orchestrator.run.rundir import RunDir
from rewards.metrics import STEP_METRICS
from tests.test_telemetry import CONTRACT_KEYS
from tests.two_nodes import ENGINES_AT_WORKER, LEARNER_AT_HEAD, train_on_two, two_networks
from tests.whole_runs import REPOSITORY, assert_same_results, command, lines, steps_done, tiny_recipe

pytestmark = pytest.mark.ray
TIMEOUT_S = 420


def mi_epo(*arguments, timeout_s=TIMEOUT_S, **environment):
    done = subprocess.run(
        command(*arguments),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def joined(ray_cluster):
    """The environment of a command that joins the tests' own cluster: for whom starting one is not the point."""
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """(run directory, what the command printed)."""
    folder = tmp_path_factory.mktemp("end-to-end")
    recipe = tiny_recipe(folder)
    return folder / "run", mi_epo("train", recipe, "loop.checkpoint_every=1", "--run-dir", folder / "run")


def test_a_run_leaves_everything_the_run_directory_promises(finished_run):
    run, said = finished_run
    metrics = lines(run / "metrics.jsonl")
    expected = {key for key in CONTRACT_KEYS if not key.startswith("reward_")}
    assert [record["step"] for record in metrics] == [0, 1, 2, 3]
    assert [record["policy_version"] for record in metrics] == [1, 2, 3, 4]
    assert all(expected | {"reward_mean/a", "reward_std/b"} <= set(record) for record in metrics)
    assert {key.partition("/")[0] for record in metrics for key in record} == {metric.family for metric in STEP_METRICS}
    assert all(np.isfinite(record["loss"]) for record in metrics)
    assert max(record["staleness_max"] for record in metrics) == 1
    assert [record["step"] for record in lines(run / "evaluations.jsonl")] == [0, 4]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert {"hypervolume", "mip", "crd", "spearman", "points", "preferences"} <= set(summary["before"])
    for name in ("report.html", "pareto.png", "control.png", "training.png"):
        assert (run / "report" / name).stat().st_size > 1000
    assert list((run / "wandb").glob("offline-run-*"))
    assert "report.html" in said
    assert not (run / "failures.jsonl").exists()
    assert said.count("step ") >= 4


def test_training_changes_the_policy(finished_run):
    run, _ = finished_run
    before, after = lines(run / "evaluations.jsonl")
    assert before["points"] != after["points"]


def test_the_saved_policy_evaluates_exactly_as_the_engines_did_at_the_end(finished_run, joined, tmp_path):
    """Same requests, same seeds: a difference would mean that what was broadcast and what was saved differ."""
    run, _ = finished_run
    mi_epo("evaluate", run, "--output", tmp_path / "again", **joined)
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    after = lines(run / "evaluations.jsonl")[-1]
    assert np.allclose(again["points"], after["points"], atol=1e-6)
    assert again["normalizer"] == after["normalizer"]


def test_the_saved_policy_answers_in_plain_transformers(finished_run):
    run, _ = finished_run
    said = mi_epo("generate", run, "--prefer", "a=0.3", "--prefer", "b=0.7", "--prompt", "t20 t21", "-n", "3")
    assert len(said.splitlines()) == 3


def test_the_notebook_of_the_docs_runs_on_a_finished_run(finished_run, tmp_path, monkeypatch):
    run, _ = finished_run
    monkeypatch.setenv("MPLBACKEND", "agg")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads((REPOSITORY / "docs" / "notebook.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    opened, summary = names["run"], json.loads((run / "report" / "summary.json").read_text())
    assert opened.figures["mip"].tolist() == [summary["before"]["mip"], summary["after"]["mip"]]
    assert names["mean_inner_product"](names["weights"], names["points"]) == pytest.approx(summary["after"]["mip"])
    assert len(opened.front) == 22 and len(opened.steps) == 4 and set(opened.examples["step"]) == {0, 4}
    with pytest.raises(ValueError, match="weights must sum to 1"):
        opened.answers("t20", {"a": 1, "b": 1})


def test_the_run_directory_is_not_used_for_another_recipe(finished_run):
    run, _ = finished_run
    asked = command("train", run.parent / "tiny.yaml", "loop.steps=5", "--run-dir", run)
    done = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, timeout=60)
    assert done.returncode == 2


@pytest.mark.full
def test_a_terminated_run_saves_a_checkpoint_and_resumes_from_it(tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    knobs = ("preferences.negatives=2", "loop.responses_per_prompt=3")
    arguments = ("train", recipe, "loop.steps=400", *knobs, "--run-dir", run)
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command(*arguments), cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while steps_done(run) < 3:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143, (tmp_path / "log").read_text()
    finally:
        process.kill()
        log.close()
    done = len(lines(run / "metrics.jsonl"))
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert (run / "checkpoints" / f"step-{done:06d}" / "STABLE").exists()
    mi_epo("train", recipe, f"loop.steps={done + 2}", *knobs, "--run-dir", run, "--resume")
    assert [record["step"] for record in lines(run / "metrics.jsonl")] == list(range(done + 2))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_killed_run_given_again_ends_exactly_as_the_undisturbed_one(finished_run, tmp_path):
    """SIGKILL between two checkpoints, with a batch in flight (staleness 1); the same command, nothing else."""
    undisturbed, _ = finished_run
    run = tmp_path / "run"
    asked = ("train", undisturbed.parent / "tiny.yaml", "loop.checkpoint_every=2", "--run-dir", run)
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command(*asked), cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (run / "checkpoints" / "step-000002" / "STABLE").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        log.close()
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    assert "going on from" in mi_epo(*asked)

    assert_same_results(run, undisturbed)
    before = (run / "metrics.jsonl").read_bytes()
    assert "finished already" in mi_epo(*asked)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_an_engine_on_another_node_than_its_learner_gives_the_same_run(finished_run, tmp_path):
    """Two nodes with addresses of their own; every weight crosses the network between them."""
    undisturbed, _ = finished_run
    run, asked = tmp_path / "two", ("telemetry.wandb=disabled", LEARNER_AT_HEAD, ENGINES_AT_WORKER)
    with two_networks(tmp_path, cpus=(1, 1)) as two:
        before = two.carried_bytes()
        places = train_on_two(two, undisturbed.parent / "tiny.yaml", run, *asked)
        sent = sum(record["sync_bytes"] for record in lines(run / "metrics.jsonl"))
        assert sent > 0 and two.carried_bytes() - before > sent
    assert places["learner"] == [True] and places["rollout"] == [False]
    assert_same_results(run, undisturbed)


@pytest.mark.full
def test_a_rewarded_soup_is_trained_and_at_its_corners_it_is_its_experts(joined, tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "soup"
    mi_epo("train", recipe, "method=rewarded-soups", "telemetry.wandb=disabled", "--run-dir", run, **joined)
    assert [record["expert"] for record in lines(run / "metrics.jsonl")] == ["a", "a", "b", "b"]
    start, soup = lines(run / "evaluations.jsonl")
    assert start["kl_to_start"] == pytest.approx(0, abs=1e-3)
    assert soup["kl_to_start"] != pytest.approx(0, abs=1e-3)
    expert = run / "experts" / "soup-a"
    mi_epo("evaluate", expert, "--recipe", run / "config.yaml", "--output", tmp_path / "corner", **joined)
    corner = json.loads((tmp_path / "corner" / "evaluation.json").read_text())
    assert corner["preferences"][0] == [1.0, 0.0]
    assert corner["points"][0] == pytest.approx(soup["points"][0], abs=1e-6)


@pytest.mark.full
def test_a_searched_soup_tries_merges_on_training_prompts_and_answers_by_what_it_found(joined, tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "soup"
    asked = ("method={type: searched-soups, tried: 3}", "telemetry.wandb=disabled")
    said = mi_epo("train", recipe, *asked, "--run-dir", run, **joined)
    assert "trying 3 merges on training prompts ..." in said
    tried = json.loads((run / "merges.json").read_text())
    assert tried["coefficients"] == [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] and np.shape(tried["rewards"]) == (3, 2)
    parts = [record for part in ("a", "b") for record in lines(run / "experts" / f"soup-{part}" / "metrics.jsonl")]
    tokens = [
        sum(record["generated_tokens"] for record in records) for records in (parts, lines(run / "metrics.jsonl"))
    ]
    assert tokens[1] > tokens[0], "what the trial sampled is counted"
    assert [record["step"] for record in lines(run / "evaluations.jsonl")] == [0, 4]
    assert len(mi_epo("generate", run, "--prefer", "a=0.3", "--prefer", "b=0.7", "--prompt", "t20").splitlines()) == 1


@pytest.mark.full
def test_a_run_whose_judges_are_refreshed_goes_on_from_before_a_refresh_bit_for_bit(joined, tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    asked = (
        "objectives.0.annotator={type: python, function: 'rewards.functions:detail'}",
        "refresh={every: 2, prompts: 6, responses: 4, steps: 2, prompts_per_step: 3, learning_rate: 0.01}",
        *("loop.checkpoint_every=1", "loop.keep_checkpoints=4", "telemetry.wandb=disabled"),
    )
    said = mi_epo("train", recipe, *asked, "--run-dir", run, **joined)
    assert "new labels before step 3: a ranked" in said
    labels = [record["labels"] for record in lines(run / "metrics.jsonl")]
    assert labels[2] > 0 and labels[:2] == [0, 0] and labels[3] == 0
    whole = shutil.copytree(run, tmp_path / "whole")
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")
    RunDir(run).describe(status="stopped")
    said = mi_epo("train", recipe, *asked, "--run-dir", run, **joined)
    assert "going on from" in said and "step-000002" in said
    assert_same_results(run, whole)
    assert (run / "annotations.jsonl").read_bytes() == (whole / "annotations.jsonl").read_bytes()


@pytest.mark.full
def test_a_killed_comparison_goes_on_where_it_was_and_runs_every_cell_once(joined, tmp_path):
    recipe, folder = tiny_recipe(tmp_path), tmp_path / "comparison"
    asked = ("compare", recipe, "--methods", "mi-epo,mo-odpo", "--seeds", "0", "--jobs", "1", "--output", folder)
    environment = {**os.environ, **joined}
    process = subprocess.Popen(command(*asked), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:  # ends at the latest with the command itself
            if line.startswith("run 2/2  mo-odpo"):
                break
    finally:
        process.kill()  # its run of mo-odpo is left behind and goes on
        process.wait()
    first = next(folder.glob("cells/mi-epo-*/run.json")).stat().st_mtime_ns
    said = mi_epo(*asked, **joined)
    assert "1 of 2 runs are finished already" in said and "run 1/1  mo-odpo-beta_c0.3-seed0 finished" in said
    assert "fewer than 3 seeds" in said
    assert next(folder.glob("cells/mi-epo-*/run.json")).stat().st_mtime_ns == first
    assert (folder / "cells" / "mo-odpo-beta_c0.3-seed0.log").read_text().count("starting Ray") == 1
    results = json.loads((folder / "results.json").read_text())
    mi_epo_cell, mo_odpo_cell = results["cells"]
    assert mi_epo_cell["prompts"] == mo_odpo_cell["prompts"] == 32
    assert mi_epo_cell["learner_tokens"] > 1.5 * mo_odpo_cell["learner_tokens"]
    assert mi_epo_cell["evaluations"][0]["points"] == mo_odpo_cell["evaluations"][0]["points"]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/run.json")}
    assert "2 of 2 runs are finished already" in mi_epo(*asked, **joined)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/run.json")}
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.full
def test_rewards_in_context_is_trained_and_its_policy_asked_again_gives_the_same_front(joined, tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "ric"
    mi_epo("train", recipe, "method=ric", "telemetry.wandb=disabled", "--run-dir", run, **joined)
    assert [record["staleness_max"] for record in lines(run / "metrics.jsonl")] == [0, 1, 0, 1]
    assert json.loads((run / "policy" / "mi_epo.json").read_text())["asks_for"] == "levels"
    mi_epo("evaluate", run, "--output", tmp_path / "again", **joined)
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert np.array(again["points"]) == pytest.approx(
        np.array(lines(run / "evaluations.jsonl")[-1]["points"]), abs=1e-6
    )


@pytest.mark.full
def test_on_a_cluster_as_many_runs_go_at_once_as_it_has_room_for_and_equal_ones_end_equal(joined, tmp_path):
    """Two runs of one seed and one recipe, one of them colocated, side by side: all but the times agrees."""
    methods = "mi-epo,mi-epo@rollout.colocated=true"
    overrides = (f"cluster.address={joined['RAY_ADDRESS']}", "loop.max_staleness=0")
    folder = tmp_path / "comparison"
    asked = ("compare", tiny_recipe(tmp_path), *overrides, "--methods", methods, "--seeds", "0", "--output", folder)
    events = [line.split(maxsplit=2)[2] for line in mi_epo(*asked).splitlines() if line.startswith("run ")]
    assert [event.endswith("...") for event in events] == [True, True, False, False]
    runs = [path.parent for path in folder.glob("cells/*/run.json")]
    assert sorted(RunDir.open(run).recipe().rollout.colocated for run in runs) == [False, True]
    assert [steps_done(run) for run in runs] == [4, 4]
    assert_same_results(*runs)
    one, other = (cell["evaluations"] for cell in json.loads((folder / "results.json").read_text())["cells"])
    assert one == other


@pytest.mark.full
def test_the_shipped_recipe_is_compared_quickly(joined, tmp_path):
    recipe, folder = REPOSITORY / "deploy" / "recipes" / "miniature.yaml", tmp_path / "quick"
    assets = f"assets.directory={tmp_path}/k2-seed{{seed}}"
    asked = ("compare", recipe, "--quick", assets, "--jobs", "1", "--output", folder)
    said = mi_epo(*asked, timeout_s=1200, **joined)
    assert "fewer than 3 seeds: the tables will hold no intervals" in said
    results = json.loads((folder / "results.json").read_text())
    assert results["methods"] == ["mi-epo", "mi-epo-scalarized"] and results["steps"] == 20
    for cell in results["cells"]:
        start, after = cell["evaluations"][0], cell["evaluations"][-1]
        assert after["mip"] > start["mip"] + 0.1
        assert after["kl_to_start"] > 0.5
    assert "One seed proves nothing" in (folder / "results.md").read_text()
