"""The run directory: refused when used, described, checkpoints complete only with their marker."""

import json
from pathlib import Path

import pytest

from orchestrator.config import load_recipe
from orchestrator.errors import BadInput
from orchestrator.rundir import CheckpointMeta, RunDir

RECIPE = load_recipe(Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml")


def meta(**changes):
    values = {
        "next_step": 5, "policy_version": 5, "objectives": RECIPE.objective_names, "policy_model": RECIPE.policy.model,
        "method": RECIPE.method,
    }  # fmt: skip
    return CheckpointMeta(**{**values, **changes})


def save(run, step, **changes):
    path = run.checkpoint_path(step)
    path.mkdir(parents=True)
    run.complete_checkpoint(path, meta(next_step=step, **changes), keep=2)


def test_a_run_directory_that_holds_a_run_is_refused(tmp_path):
    RunDir.create(tmp_path / "run", RECIPE)
    with pytest.raises(BadInput, match="already holds a run"):
        RunDir.create(tmp_path / "run", RECIPE)


def test_the_resolved_recipe_is_kept_and_read_back(tmp_path):
    assert RunDir.create(tmp_path / "run", RECIPE).recipe() == RECIPE


def test_run_json_says_what_ran_and_how_it_ended(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    run.start(RECIPE)
    run.finish("finished", seconds=1.5)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["seed"] == 0
    assert record["versions"]["torch"].startswith("2.")
    assert record["start"] <= record["end"]


def test_a_resumed_run_keeps_its_first_start_and_forgets_its_error(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    run.start(RECIPE)
    run.describe(start="2026-01-01T00:00:00+00:00")
    run.finish("failed", error="RunFailed: a rank died")
    run.start(RECIPE, resumed=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["start"] == "2026-01-01T00:00:00+00:00" < record["resumed"]
    assert (record["status"], record["error"], record["end"]) == ("running", None, None)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(BadInput, match="not a run directory"):
        RunDir.open(tmp_path)


def test_only_a_checkpoint_with_its_marker_counts(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    assert run.latest_checkpoint(RECIPE) is None
    save(run, 5)
    run.checkpoint_path(9).mkdir()
    (run.checkpoint_path(9) / "meta.json").write_text(meta(next_step=9).model_dump_json())
    latest = run.latest_checkpoint(RECIPE)
    assert latest is not None
    path, found = latest
    assert (path.name, found.next_step) == ("step-000005", 5)


def test_old_checkpoints_go_when_new_ones_are_complete(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    for step in (1, 2, 3):
        save(run, step)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": ("a", "b")}, "objectives"),
        ({"policy_model": "other"}, "policy_model"),
        ({"method": "x"}, "method"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, changes, said):
    run = RunDir.create(tmp_path / "run", RECIPE)
    save(run, 5, **changes)
    with pytest.raises(BadInput, match=f"meta.json: {said}: must equal"):
        run.latest_checkpoint(RECIPE)


def test_a_damaged_checkpoint_description_is_named(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    save(run, 5)
    (run.checkpoint_path(5) / "meta.json").write_text('{"next_step": 5, "surprise": 1}')
    with pytest.raises(BadInput, match=r"meta\.json: surprise: unknown key"):
        run.latest_checkpoint(RECIPE)
