"""The run directory: refused when used, described, checkpoints complete only with their marker."""

import contextlib
import errno
import json
import resource
from pathlib import Path

import pytest

from learner.types import PoisonedUpdateError
from orchestrator.cli import explain
from orchestrator.errors import BadInput, RunFailed
from orchestrator.recipes import load_recipe
from orchestrator.run.rundir import LAYOUT, CheckpointMeta, RunDir
from orchestrator.run.train import skip_update

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"
RECIPE = load_recipe(MINIATURE)


def meta(**changes):
    values = {
        "next_step": 5, "policy_version": 5, "objectives": RECIPE.objective_names, "policy_model": RECIPE.policy.model,
        "layout": LAYOUT,
        "method": RECIPE.method.type,
    }  # fmt: skip
    return CheckpointMeta(**{**values, **changes})


def save(run, step, *, in_flight=None, **changes):
    partial = run.path / "checkpoints" / "partial"
    partial.mkdir(parents=True)
    if in_flight is not None:
        (partial / "in_flight.json").write_text(in_flight)
    (partial / "learner.json").write_text('{"identity": {}, "adam_steps": 1, "files": {}}')
    assert run.publish_checkpoint(partial, meta(next_step=step, **changes), keep=2) == run.checkpoint_path(step)


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


def test_run_json_names_the_revision_that_an_image_was_built_from(tmp_path, monkeypatch):
    run = RunDir.create(tmp_path / "run", RECIPE)
    monkeypatch.setenv("MI_EPO_REVISION", "0123abcd")
    run.start(RECIPE)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["git_sha"] == "0123abcd"
    monkeypatch.setenv("MI_EPO_REVISION", "unknown")  # an image that was not told
    run.start(RECIPE)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["git_sha"] != "unknown"


def test_a_resumed_run_keeps_its_first_start_and_forgets_its_error(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    run.start(RECIPE)
    run.describe(start="2026-01-01T00:00:00+00:00")
    run.finish("failed", error="RunFailed: a rank died")
    run.start(RECIPE, resumed=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["start"] == "2026-01-01T00:00:00+00:00" < record["resumed"]
    assert (record["status"], record["error"], record["end"]) == ("running", None, None)


def test_the_same_recipe_goes_on_in_its_folder_and_another_is_refused(tmp_path):
    path, longer = tmp_path / "run", load_recipe(MINIATURE, ["loop.steps=200"])
    with RunDir.claim(path, RECIPE, resume=False) as run:
        assert not run.holds_run
        run.write_recipe(RECIPE)
    elsewhere = load_recipe(
        MINIATURE, ["cluster.address=10.0.0.1:6379", "telemetry.wandb=disabled", "loop.checkpoint_every=7"]
    )
    for same in (RECIPE, elsewhere):
        with RunDir.claim(path, same, resume=False) as run:
            assert run.recipe() == RECIPE
    with pytest.raises(BadInput, match="holds a run of another recipe"), RunDir.claim(path, longer, resume=False):
        pass
    with RunDir.claim(path, longer, resume=True):  # asked for: more steps
        pass
    with pytest.raises(BadInput, match="not a run directory"), RunDir.claim(tmp_path / "x", RECIPE, resume=True):
        pass
    assert not (tmp_path / "x").exists()


def test_two_processes_are_never_at_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.run.rundir.CLAIM_TIMEOUT_S", 0)
    with (
        RunDir.claim(tmp_path, RECIPE, resume=False),
        pytest.raises(BadInput, match="another process is at this run"),
        RunDir.claim(tmp_path, RECIPE, resume=False),
    ):
        pass


def test_rewinding_drops_what_will_be_done_again_and_a_line_that_a_kill_cut_short(tmp_path):
    run = RunDir(tmp_path)
    written = {"metrics.jsonl": [0, 1, 2, 3, 4, 5], "samples.jsonl": [0, 0, 1, 4, 5], "evaluations.jsonl": [0, 4, 6]}
    for name, numbers in written.items():
        (tmp_path / name).write_text("".join(json.dumps({"step": step}) + "\n" for step in numbers))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')

    def steps(name):
        return [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()]

    run.rewind(7)
    assert steps("metrics.jsonl") == [0, 1, 2, 3, 4, 5]
    run.rewind(4)
    assert steps("metrics.jsonl") == [0, 1, 2, 3]
    assert steps("samples.jsonl") == [0, 0, 1]
    assert steps("evaluations.jsonl") == [0, 4]  # the one at 4 came before the checkpoint at 4
    assert run.has_evaluation(4) and not run.has_evaluation(6)
    run.rewind(-1)
    assert steps("metrics.jsonl") == steps("samples.jsonl") == steps("evaluations.jsonl") == []


def test_rewinding_keeps_an_evaluation_whose_prompts_hold_line_ends_of_unicode(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text('{"step": 0, "prompt": "a\u2028b\u2029c\x85d"}\n', encoding="utf-8")
    RunDir(tmp_path).rewind(0)
    assert RunDir(tmp_path).has_evaluation(0)


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


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    save(run, 5)
    save(run, 9)
    described = {"identity": {}, "adam_steps": 1, "files": {"state-00000.safetensors": "0"}}
    (run.checkpoint_path(9) / "learner.json").write_text(json.dumps(described))
    said: list[str] = []
    latest = run.latest_checkpoint(RECIPE, said.append)
    assert latest is not None and latest[1].next_step == 5
    assert len(said) == 1 and "step-000009: file 'state-00000.safetensors' is missing or damaged" in said[0]


def test_a_damaged_checkpoint_description_is_named(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    save(run, 5)
    (run.checkpoint_path(5) / "meta.json").write_text('{"next_step": 5, "surprise": 1}')
    with pytest.raises(BadInput, match=r"meta\.json: surprise: unknown key"):
        run.latest_checkpoint(RECIPE)


def test_poisoned_updates_are_left_out_from_then_on_until_there_are_too_many(tmp_path):
    recipe = load_recipe(MINIATURE, ["health.max_skipped_updates=2"])
    run = RunDir.create(tmp_path / "run", recipe)
    assert run.skipped_updates == ()
    for step in (7, 3):
        skip_update(recipe, run, PoisonedUpdateError(f"step {step}: the loss is nan", step))
    run.start(recipe, resumed=True)
    assert RunDir.open(tmp_path / "run").skipped_updates == (7, 3)
    with pytest.raises(RunFailed, match=r"step 9: the loss is inf; 2 updates were left out already"):
        skip_update(recipe, run, PoisonedUpdateError("step 9: the loss is inf", 9))


def test_an_update_that_is_poisoned_although_it_was_left_out_ends_the_run(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    error = PoisonedUpdateError("step 7: the loss is nan", 7)
    skip_update(RECIPE, run, error)
    with pytest.raises(PoisonedUpdateError, match="the loss is nan"):
        skip_update(RECIPE, run, error)
    assert run.skipped_updates == (7,)


def test_a_checkpoint_of_another_layout_is_refused_by_name_and_stays(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    save(run, 5, layout=1)
    with pytest.raises(BadInput, match=r"step-000005/meta\.json: layout: must be 2, got 1: another version of mi-epo"):
        run.latest_checkpoint(RECIPE)
    assert (run.checkpoint_path(5) / "STABLE").exists()


@contextlib.contextmanager
def small_files_only(limit):
    """Writing more than `limit` bytes into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_harms_nothing_that_stands(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    run.start(RECIPE)
    save(run, 5)
    (run.path / "metrics.jsonl").write_text('{"step": 4}\n')
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with small_files_only(16):
        with pytest.raises(OSError, match="File too large"):
            run.describe(note="x" * 100)
        with pytest.raises(OSError, match="File too large"):
            save(run, 10)
    assert {path: path.read_bytes() for path in before} == before
    assert run.latest_checkpoint(RECIPE) == (run.checkpoint_path(5), meta(next_step=5))


def test_a_full_disk_is_told_in_one_line(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")
    assert explain(full) == 1
    said = capsys.readouterr().err
    assert said == "mi-epo: runs/x/metrics.jsonl: cannot be written: No space left on device\n"


def test_a_checkpoint_whose_batches_in_flight_were_damaged_is_passed_over(tmp_path):
    run = RunDir.create(tmp_path / "run", RECIPE)
    save(run, 5)
    partial = run.path / "checkpoints" / "partial"
    save(run, 10, in_flight_sha256="0" * 64, in_flight='{"batches": []}')
    said: list[str] = []
    assert run.latest_checkpoint(RECIPE, said.append) == (run.checkpoint_path(5), meta(next_step=5))
    assert not partial.exists() and "in_flight.json: holds other bytes than were saved" in said[0]
