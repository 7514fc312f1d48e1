"""`--resume`: a run goes on with more steps from its last one, or is refused and stays as it is."""

import json
import shutil

import pytest

from orchestrator.errors import BadInput
from orchestrator.recipes import load_recipe
from orchestrator.run.train import train
from tests.fake_crew import FakeHire, Killed
from tests.whole_runs import lines, tiny_recipe

STEPS = ("telemetry.wandb=disabled", "loop.steps=3", "evaluate.information_responses=2")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def go(recipe_file, tmp_path):
    """Train into one folder, `--resume` with whatever is overridden; (steps updated by each crew, what was said)."""

    def go(*overrides, resume=True, hire=None):
        said: list[str] = []
        hire = hire or FakeHire()
        recipe = load_recipe(recipe_file, [*STEPS, *overrides])
        assert train(recipe, tmp_path / "run", resume=resume, say=said.append, hire=hire) == 0
        return hire.updates, said

    return go


@pytest.fixture
def finished(go, tmp_path):
    go(resume=False)
    return tmp_path / "run"


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def steps(run, name="metrics.jsonl"):
    return [record["step"] for record in lines(run / name)]


def test_a_finished_run_goes_on_with_more_steps_from_its_last_one(go, finished):
    before = {name: (finished / name).read_bytes() for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl")}
    updates, said = go("loop.steps=5")
    assert updates == [[3, 4]]
    assert steps(finished) == [0, 1, 2, 3, 4] and steps(finished, "evaluations.jsonl") == [0, 3, 5]
    for name, text in before.items():
        assert (finished / name).read_bytes().startswith(text)
    assert json.loads((finished / "run.json").read_text())["status"] == "finished"
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"step-000003", "step-000005"}
    assert any("going on from" in line and "step-000003" in line for line in said)


def test_the_learning_rate_of_the_longer_run_is_told(go, finished):
    _, said = go("loop.steps=6")
    assert (
        "loop.steps 3 -> 6: from step 3 on the learning rate follows the cosine schedule of 6 steps "
        "(0.005 now, where that of 3 stood at 0)" in said
    )


def test_a_constant_learning_rate_needs_no_word(go):
    go("learner.schedule=constant", resume=False)
    _, said = go("learner.schedule=constant", "loop.steps=6")
    assert "loop.steps 3 -> 6" in said


def test_a_longer_run_that_is_killed_goes_on_by_the_same_command_without_being_asked_to(go, finished):
    with pytest.raises(Killed):
        go("loop.steps=6", hire=FakeHire({4: [Killed()]}))
    updates, _ = go("loop.steps=6", resume=False)
    assert updates == [[3, 4, 5]] and steps(finished) == list(range(6))


@pytest.mark.parametrize("overrides", [(), ("loop.steps=2",), ("learner.learning_rate=0.5",)])
def test_a_finished_run_without_more_steps_stays_as_it_is(go, finished, overrides):
    before = contents(finished)
    if overrides == ("loop.steps=2",):
        with pytest.raises(BadInput, match=r"loop\.steps: must be at least the 3 that .* has done, got 2"):
            go(*overrides)
    else:
        updates, said = go(*overrides)
        assert updates == [] and f"{finished}: finished already" in said
    assert contents(finished) == before


def test_a_finished_run_without_a_checkpoint_of_its_end_is_not_started_over(go, finished):
    shutil.rmtree(finished / "checkpoints")
    before = contents(finished)
    with pytest.raises(BadInput, match=r"is finished and holds no checkpoint of its last step, 3, .* go on to 5; .*"):
        go("loop.steps=5")
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed=1", "seed: must stay 0"),
        ("method=mo-odpo", "method.type: must stay 'mi-epo'"),
        ("objectives.1.name=c", "objectives.1.name: must stay 'b'"),
        ("objectives.1.scorer.function=math:pow", "objectives.1.scorer.function: must stay"),
        ("learner.lora={rank: 2}", "learner.lora: must stay None"),
        ("preferences.conditioning.weight='{name}={weight}'", "preferences.conditioning.weight: must stay"),
        ("evaluate.reference_point=-5", "evaluate.reference_point: must stay -3.0"),
    ],
)
def test_what_the_run_was_begun_with_is_kept_or_the_change_refused_in_one_line(go, finished, change, said):
    before = contents(finished)
    with pytest.raises(BadInput) as refused:
        go("loop.steps=5", change)
    assert str(refused.value).startswith(f"--resume: {said}") and "\n" not in str(refused.value)
    assert contents(finished) == before


def test_what_changes_nothing_of_the_past_may_change(go, finished):
    updates, _ = go("loop.steps=5", "learner.learning_rate=0.001", "objectives.0.replicas=2", "evaluate.every=1")
    assert updates == [[3, 4]]


def test_batches_in_flight_are_sampled_anew_under_a_recipe_that_asks_otherwise(go, finished):
    with pytest.raises(Killed):
        go("loop.steps=9", "loop.checkpoint_every=5", hire=FakeHire({6: [Killed()]}))
    updates, _ = go("loop.steps=9", "loop.prompts_per_step=4")
    assert updates == [[5, 6, 7, 8]]
    assert [record["prompts"] for record in lines(finished / "metrics.jsonl")] == [8] * 5 + [4] * 4


def test_a_method_of_stages_does_not_move_them_under_what_is_done(go):
    go("method=ric", "loop.steps=4", resume=False)
    with pytest.raises(BadInput, match=r"loop\.steps: must stay 4: ric divides its steps into stages"):
        go("method=ric", "loop.steps=8")
