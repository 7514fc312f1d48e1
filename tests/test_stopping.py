"""Signals: a run says at once how it stops and how soon, ends as stopped, and goes on by the same command."""

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from orchestrator.cluster import crew
from orchestrator.recipes import load_recipe
from orchestrator.run.stopping import StopFlag
from orchestrator.run.train import longest_step_s, train
from tests.fake_crew import FakeHire
from tests.whole_runs import lines, tiny_recipe

OVERRIDES = ("telemetry.wandb=disabled", "loop.steps=3", "evaluate.information_responses=2")
BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def run(recipe_file, tmp_path):
    """(exit code, status, what was said)"""

    def run(hire):
        said: list[str] = []
        code = train(load_recipe(recipe_file, [*OVERRIDES]), tmp_path / "run", say=said.append, hire=hire)
        return code, json.loads((tmp_path / "run" / "run.json").read_text()), said

    return run


class StoppedAtStart(FakeHire):
    """The signal comes while actors start; what leaves them then gets it once more."""

    def __init__(self, number, times=1):
        super().__init__()
        self.number, self.times = number, times

    @contextlib.contextmanager
    def __call__(self, recipe, run_name, failures, stop, say):
        try:
            os.kill(os.getpid(), self.number)
            yield
        finally:
            if self.times == 2:
                os.kill(os.getpid(), self.number)


class StoppedWithin(FakeHire):
    """The signals come with the update of step 1."""

    def __init__(self, number, times):
        super().__init__()
        self.number, self.times = number, times

    @contextlib.contextmanager
    def __call__(self, recipe, run_name, failures, stop, say):
        with super().__call__(recipe, run_name, failures, stop, say) as crew:
            update = crew.learner.update

            def stopped(batch):
                for _ in range(self.times * (batch.step == 1)):
                    os.kill(os.getpid(), self.number)
                return update(batch)

            setattr(crew.learner, "update", stopped)  # noqa: B010  (mypy: a method is assigned)
            yield crew


@BOTH
@pytest.mark.parametrize("times", [1, 2])
def test_a_stop_while_actors_start_ends_at_once_as_stopped(run, capfd, number, code, times):
    left, record, said = run(StoppedAtStart(number, times))
    assert (left, record["status"], record["error"]) == (code, "stopped", None)
    assert f"mi-epo: {number.name}: stops at once, within 30 s\n" in capfd.readouterr().err
    assert said[-1] == "stopped; given again, the command goes on from the start"
    assert run(FakeHire())[:2][0] == 0


@BOTH
def test_a_stop_between_steps_says_how_long_its_checkpoint_may_take(run, capfd, number, code, tmp_path):
    left, record, _ = run(StoppedWithin(number, 1))
    assert (left, record["status"]) == (code, "stopped")
    assert f"mi-epo: {number.name}: stops after this step and its checkpoint, by their" in capfd.readouterr().err
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1]
    again = FakeHire()
    assert run(again)[0] == 0 and again.updates == [[2]]


@BOTH
def test_a_second_stop_does_not_wait_for_the_step_and_ends_as_stopped(run, number, code):
    left, record, said = run(StoppedWithin(number, 2))
    assert (left, record["status"], record["error"]) == (code, "stopped", None)
    assert said[-1] == "stopped; given again, the command goes on from the start"


def test_a_step_takes_no_longer_than_its_deadlines(recipe_file):
    deadlines = ("rollout.generate_timeout_s=7", "learner.step_timeout_s=50", "learner.sync_timeout_s=900")
    assert longest_step_s(load_recipe(recipe_file, [*deadlines])) == 7 * 2 + 50 * 2 + 900


def test_a_sigterm_that_ray_took_for_itself_while_it_started_is_a_stop(capfd):
    """`ray.init` has it call sys.exit."""
    stop = StopFlag()
    with pytest.raises(KeyboardInterrupt), stop.installed():
        signal.signal(signal.SIGTERM, lambda number, frame: exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.exit_code == 143
    assert "SIGTERM: stops at once" in capfd.readouterr().err


def test_handlers_are_as_before_afterwards_and_no_last_resort_is_left():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), StopFlag().installed():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not any(
        isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate()
    )


def test_a_stop_does_not_wait_for_the_threads_that_wait_for_actors():
    waiting, started = threading.Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), crew.start_threads(1) as pool:
        pool.submit(waiting.wait, 60)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30
    waiting.set()
