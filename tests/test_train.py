"""Whole training runs on a crew of fakes: what a run leaves, and what it does when one stops, dies or is poisoned."""

import json
import signal

import numpy as np
import pytest

from learner.methods import METHODS, Merger
from orchestrator.errors import BadInput, RunFailed
from orchestrator.recipes import load_recipe
from orchestrator.run.steering import load_conditioning
from orchestrator.run.train import train
from tests.fake_crew import FakeHire, Killed, lost, poisoned
from tests.test_telemetry import CONTRACT_KEYS
from tests.whole_runs import assert_same_results, failures, lines, tiny_recipe

METHOD_NAMES = [name for name, method in METHODS.items() if not issubclass(method, Merger)]
OVERRIDES = (
    "telemetry.wandb=disabled",
    "loop.steps=8",
    "loop.checkpoint_every=3",
    "evaluate.every=4",
    "evaluate.information_responses=2",
)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def run_recipe(recipe_file, tmp_path):
    """Train into `tmp_path / name`; returns (run directory, exit code, what was said)."""

    def run(*overrides, name="run", hire=None, resume=False):
        said: list[str] = []
        recipe = load_recipe(recipe_file, [*OVERRIDES, *overrides])
        code = train(recipe, tmp_path / name, resume=resume, say=said.append, hire=hire or FakeHire())
        return tmp_path / name, code, said

    return run


def status(run):
    return json.loads((run / "run.json").read_text())["status"]


def test_a_run_leaves_everything_the_run_directory_promises(run_recipe):
    run, code, _ = run_recipe()
    assert code == 0 and status(run) == "finished"
    metrics = lines(run / "metrics.jsonl")
    expected = {key for key in CONTRACT_KEYS if not key.startswith("reward_")}
    assert [record["step"] for record in metrics] == list(range(8))
    assert [record["policy_version"] for record in metrics] == list(range(1, 9))
    assert [record["staleness_max"] for record in metrics] == [0, *[1] * 7]
    assert all(expected | {"reward_mean/a", "reward_std/b"} <= set(record) for record in metrics)
    assert [record["step"] for record in lines(run / "evaluations.jsonl")] == [0, 4, 8]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000006", "step-000008"}
    assert load_conditioning(run / "policy").objectives == ("a", "b")
    assert failures(run) == []


def test_what_the_ranks_remark_of_the_model_is_said(run_recipe):
    _, _, said = run_recipe("loop.steps=1")
    assert "what its ranks say of the model" in said


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("step", [2, 5])
def test_a_killed_run_given_again_ends_as_the_undisturbed_one_under_every_method(run_recipe, name, step):
    """Killed before the first checkpoint and after it, with batches in flight."""
    method = f"method={name}"
    whole, _, _ = run_recipe(method, name="whole")
    with pytest.raises(Killed):
        run_recipe(method, hire=FakeHire({step: [Killed()]}))
    again = FakeHire()
    run, code, said = run_recipe(method, hire=again)
    assert code == 0
    assert again.updates == [list(range(3 * (step // 3), 8))]
    assert any(line.startswith("going on from" if step > 3 else "no complete checkpoint") for line in said)
    assert_same_results(run, whole)


def test_a_stopped_run_saves_a_checkpoint_and_goes_on_with_more_steps_when_asked(run_recipe):
    class Stopped(FakeHire):
        def __call__(self, recipe, run_name, failures, stop, say):
            stop.signal = signal.SIGTERM
            return super().__call__(recipe, run_name, failures, stop, say)

    run, code, said = run_recipe(hire=Stopped())
    assert (code, status(run)) == (143, "stopped")
    assert (run / "checkpoints" / "step-000001" / "STABLE").exists() and "stopped at step 1" in "\n".join(said[-2:])
    hire = FakeHire()
    _, code, _ = run_recipe("loop.steps=10", hire=hire, resume=True)
    assert code == 0 and hire.updates == [list(range(1, 10))]
    assert [record["step"] for record in lines(run / "metrics.jsonl")] == list(range(10))


@pytest.mark.parametrize("name", ["mi-epo", "ric"])
def test_a_poisoned_update_is_left_out_and_the_run_goes_on(run_recipe, name):
    hire = FakeHire({4: [poisoned(4)]})
    run, code, said = run_recipe(f"method={name}", hire=hire)
    assert code == 0
    assert hire.updates == [[0, 1, 2, 3], [3, 5, 6, 7]]
    assert json.loads((run / "run.json").read_text())["skipped_updates"] == [4]
    assert [record["loss"] is None for record in lines(run / "metrics.jsonl")] == [step == 4 for step in range(8)]
    assert any("this update is left out" in line for line in said)


def test_a_run_whose_every_update_is_left_out_says_that_nothing_was_learned_and_fails(run_recipe, tmp_path):
    hire = FakeHire({step: [poisoned(step)] for step in range(3)})
    with pytest.raises(RunFailed) as ended:
        run_recipe("loop.steps=3", hire=hire)
    assert str(ended.value).startswith(
        "nothing was learned: none of 3 steps updated the policy (3 left out for a loss or gradient that is not "
        "finite, 0 without a usable example)"
    )
    run = tmp_path / "run"
    assert status(run) == "failed" and not (run / "policy").exists()
    assert "nothing was learned" in json.loads((run / "run.json").read_text())["error"]


def test_a_run_without_one_usable_example_says_that_nothing_was_learned(run_recipe):
    with pytest.raises(RunFailed, match=r"none of 2 steps updated the policy \(0 left out .*, 2 without a usable ex"):
        run_recipe("loop.steps=2", hire=FakeHire(silent=True))


def test_a_run_whose_every_gradient_is_zero_says_that_nothing_was_learned(run_recipe):
    with pytest.raises(RunFailed, match=r"nothing was learned: the gradient norm was 0 in every update \(8\)"):
        run_recipe(hire=FakeHire(grad_norm=0.0))


def test_a_lost_component_starts_everything_again_from_the_last_checkpoint(run_recipe):
    whole, _, _ = run_recipe(name="whole")
    hire = FakeHire({5: [lost()]})
    run, code, _ = run_recipe(hire=hire)
    assert code == 0 and hire.updates == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]
    assert [failure["component"] for failure in failures(run)] == ["the run"]
    assert_same_results(run, whole)


def test_too_many_losses_end_the_run(run_recipe):
    hire = FakeHire({5: [lost(), lost(), lost()]})
    with pytest.raises(RunFailed, match=r"cluster\.max_failures = 1"):
        run_recipe("cluster.max_failures=1", hire=hire)


def test_a_finished_run_is_not_done_again_and_its_folder_takes_no_other_recipe(run_recipe):
    run, _, _ = run_recipe()
    before, hire = (run / "metrics.jsonl").read_bytes(), FakeHire()
    _, code, said = run_recipe(hire=hire)
    assert code == 0 and hire.crews == [] and f"{run}: finished already" in said
    assert (run / "metrics.jsonl").read_bytes() == before
    with pytest.raises(BadInput, match="holds a run of another recipe"):
        run_recipe("seed=1")


def test_rewards_in_context_samples_each_half_by_one_policy_and_its_policy_is_asked_for_levels(run_recipe):
    run, _, _ = run_recipe("method=ric")
    metrics = lines(run / "metrics.jsonl")
    assert [record["staleness_max"] for record in metrics] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [record["learner_tokens"] for record in metrics[:4]] == [16] * 4, "every response is imitated once"
    assert all(0 < record["learner_tokens"] < 16 for record in metrics[4:])
    assert load_conditioning(run / "policy").asks_for == "levels"
    asked = [np.array(record["preference_pos"]) for record in lines(run / "samples.jsonl")]
    assert {bool(w.sum() == pytest.approx(1)) for w in asked[:8]} == {True}
    assert [bool(w.max() == 1) or np.linalg.norm(w) == pytest.approx(1) for w in asked[8:]] == [True] * 8


def test_a_policy_and_engines_that_disagree_are_found_before_the_first_update(run_recipe):
    with pytest.raises(RunFailed, match=r"disagree on the same tokens by 1\.0000 nats a token at policy version 0"):
        run_recipe(hire=FakeHire(engine_logprob=0.0))
