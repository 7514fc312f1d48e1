"""Engines and judges that die while they work: the batch comes out as if they had not. Real Ray, light actors."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_actors import POISON, FakeJudge, FakeRollout

from actors.types import GenerationRequest
from learner.types import EngineLostError
from orchestrator.cluster.failures import Failures, is_loss
from orchestrator.cluster.fleet import Fleet, Replica
from orchestrator.cluster.judging import Judges
from orchestrator.errors import ComponentLost, RunFailed
from orchestrator.run.batching import RequestBatch
from orchestrator.run.sampling import Sampler
from orchestrator.sections import ClusterConfig
from rewards.prompts import Prompt
from tests.whole_runs import failures

REQUESTS = tuple(
    GenerationRequest(
        request_id=f"r{i}",
        prompt=Prompt(text=f"prompt {i}"),
        prompt_ids=(1, i),
        preference=(0.5, 0.5),
        num_responses=2,
        seed=i + 1,
    )
    for i in range(9)
)
BATCH = RequestBatch(step=0, requests=REQUESTS, preference_neg=np.zeros((9, 1, 2)))


class FakePush:
    """Sends a version as the learner does: to the handles it was last connected to."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.connected: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def connect(self, handles: list[Any]) -> None:
        self.handles = handles
        self.connected.append(len(handles))

    def push(self, version: int) -> Any:
        import ray

        self.before()
        for index, handle in enumerate(self.handles):
            try:
                ray.get(handle.receive.remote(version), timeout=4)
            except ray.exceptions.GetTimeoutError:
                raise EngineLostError(f"engine {index} is late", index, died=False) from None
            except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
                raise EngineLostError(f"engine {index}: {error}", index, died=True) from error
        return version


class Crew:
    """Fleet, judges and sampler over light actors."""

    def __init__(self, folder: Path, *, engines: int = 2, delay_s: float = 0.0, max_failures: int = 5) -> None:
        import ray

        self.said: list[str] = []
        config = ClusterConfig(max_failures=max_failures)
        self.failures = Failures(config, folder, self.said.append, clock=itertools.count(0, 60).__next__)
        self.folder = folder
        self.push = FakePush()
        self.gate = folder / "none-loads"
        self.handles = [self.start(FakeRollout, delay_s, self.gate) for _ in range(engines)]
        self.judge_handles = [self.start(FakeJudge, delay_s) for _ in range(2)]
        self.pids = {}
        for handle in [*self.handles, *self.judge_handles]:
            self.pids[handle] = ray.get(handle.ready.remote(), timeout=60)["pid"]
        self.fleet = Fleet(
            [Replica(handle, f"rollout-{i}", self.failures) for i, handle in enumerate(self.handles)],
            connect=self.push.connect,
            push=self.push.push,
            start_timeout_s=60,
            generate_timeout_s=60,
        )
        names = ("brevity", "style")
        named = zip(names, self.judge_handles, strict=True)
        replicas: dict[tuple[str, ...], list[Replica]] = {(n,): [Replica(h, n, self.failures)] for n, h in named}
        judges = Judges(replicas, names)
        self.threads = ThreadPoolExecutor(2)
        self.sampler = Sampler(self.fleet, judges, timeout_s=60, threads=self.threads)

    @staticmethod
    def start(actor: type, *arguments: object) -> Any:
        import ray

        return ray.remote(actor).options(num_cpus=0.1, max_restarts=-1).remote(*arguments)

    def close(self) -> None:
        import ray

        for handle in [*self.handles, *self.judge_handles]:
            ray.kill(handle)
        self.threads.shutdown()

    def send(self, number: int, handle: Any, after_s: float = 0.0) -> None:
        """A signal to the actor's first process, now or a little later."""
        threading.Timer(after_s, os.kill, (self.pids[handle], number)).start()
        if not after_s:
            time.sleep(0.3)

    def asleep(self) -> list[bool]:
        import ray

        return ray.get([handle.is_asleep.remote() for handle in self.handles], timeout=30)

    def lost(self) -> list[str]:
        return [failure["component"] for failure in failures(self.folder)]


@pytest.fixture
def crew(ray_cluster: None, tmp_path: Path) -> Any:
    crews: list[Crew] = []

    def make(**options: Any) -> Crew:
        crews.append(Crew(tmp_path, **options))
        return crews[-1]

    yield make
    for made in crews:
        made.close()


def expected_scores() -> np.ndarray:
    """[9, 2, 2]: length of the response, and how many responses met in one call: two requests, or the odd one."""
    together = dict.fromkeys(range(9), 4) | {8: 2}
    return np.array([[[i + 1 + together[i] / 1000] * 2] * 2 for i in range(9)])


@pytest.mark.ray
def test_the_share_of_an_engine_that_dies_is_sampled_again_elsewhere_and_nothing_is_different(crew):
    made = crew(delay_s=0.4)
    made.fleet.push_weights(3)
    pending = made.sampler.submit(BATCH, 3)
    made.send(signal.SIGKILL, made.handles[1], after_s=0.6)
    scored = pending.result()
    assert [rollout.request.request_id for rollout in scored.rollouts] == [f"r{i}" for i in range(9)]
    assert {rollout.min_policy_version for rollout in scored.rollouts} == {3}
    assert scored.scores == pytest.approx(expected_scores(), abs=0)
    assert made.lost() == ["rollout-1"]
    assert "lost rollout-1: " in made.said[0] and made.said[0].endswith("; started again")


@pytest.mark.ray
def test_an_engine_that_is_broken_is_ended_and_its_share_sampled_again(crew):
    import ray

    made = crew()
    made.fleet.push_weights(3)
    ray.get(made.handles[1].break_down.remote(), timeout=30)
    assert made.sampler.submit(BATCH, 3).result().scores == pytest.approx(expected_scores(), abs=0)
    [failure] = failures(made.folder)
    assert failure["component"] == "rollout-1" and "illegal memory access" in failure["what"]
    assert made.fleet.engines[1].is_back(30)
    assert ray.get(made.handles[1].ready.remote(), timeout=30)["pid"] != made.pids[made.handles[1]]


@pytest.mark.ray
@pytest.mark.parametrize("engines", [1, 2])
def test_requests_that_break_every_engine_end_the_run_instead_of_being_tried_for_ever(crew, engines):
    made = crew(engines=engines)
    made.fleet.push_weights(3)
    poisoned = [*REQUESTS[:8], replace(REQUESTS[8], prompt_ids=(1, POISON))]
    with pytest.raises(RunFailed, match=r"'r0' and after, broke 3 engines .* index out of range in self"):
        made.sampler.submit(replace(BATCH, requests=tuple(poisoned)), 3).result()
    assert len(made.lost()) == 2


@pytest.mark.ray
def test_a_judge_whose_gpu_failed_is_ended_and_asked_again(crew):
    import ray

    made = crew()
    ray.get(made.judge_handles[0].break_down.remote(), timeout=30)
    assert made.sampler.submit(BATCH, 0).result().scores == pytest.approx(expected_scores(), abs=0)
    [failure] = failures(made.folder)
    assert failure["component"] == "brevity" and "illegal memory access" in failure["what"]


@pytest.mark.ray
def test_an_engine_that_came_back_serves_again_from_the_next_weights_on(crew):
    made = crew()
    made.fleet.push_weights(1)
    made.send(signal.SIGKILL, made.handles[0])
    assert made.sampler.submit(BATCH, 1).result().scores == pytest.approx(expected_scores(), abs=0)
    assert [engine.holds for engine in made.fleet.engines] == [None, 1]
    assert made.fleet.engines[0].is_back(30)
    made.fleet.push_weights(2)
    assert [engine.holds for engine in made.fleet.engines] == [2, 2]
    assert made.sampler.sample(REQUESTS, 2).scores["reward"] == pytest.approx(expected_scores(), abs=0)
    assert made.push.connected == [2, 2] and made.lost() == ["rollout-0"]


@pytest.mark.ray
def test_the_only_engine_is_brought_back_with_the_current_weights(crew):
    made = crew(engines=1, delay_s=0.3)
    made.fleet.push_weights(5)
    pending = made.sampler.submit(BATCH, 5)
    made.send(signal.SIGKILL, made.handles[0], after_s=0.4)
    assert pending.result().scores == pytest.approx(expected_scores(), abs=0)
    assert made.lost() == ["rollout-0"]


@pytest.mark.ray
def test_log_probabilities_survive_the_only_engine(crew):
    made = crew(engines=1)
    made.fleet.push_weights(5)
    made.send(signal.SIGKILL, made.handles[0])
    assert made.sampler.logprobs([(1,), (2,)], [(3, 4), (5,)]).tolist() == [-2.0, -1.0]
    assert made.lost() == ["rollout-0"]


@pytest.mark.ray
def test_older_weights_cannot_be_brought_back(crew):
    made = crew(engines=1, delay_s=0.3)
    made.fleet.push_weights(5)
    pending = made.sampler.submit(BATCH, 5)
    made.send(signal.SIGKILL, made.handles[0], after_s=0.4)
    made.fleet.push_weights(6)
    with pytest.raises(
        ComponentLost, match="none is left that holds policy version 5, and the learner has newer"
    ) as lost:
        pending.result()
    assert is_loss(lost.value)


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_weights_reach_the_others_when_an_engine_dies_or_hangs_in_the_broadcast(crew, number):
    made = crew()

    def once() -> None:
        made.push.before = lambda: None
        made.gate.touch()
        made.send(number, made.handles[1])

    made.push.before = once
    made.fleet.push_weights(1)
    assert [engine.holds for engine in made.fleet.engines] == [1, None]
    made.gate.unlink()
    assert made.fleet.engines[1].is_back(30)
    made.fleet.push_weights(2)
    assert [engine.holds for engine in made.fleet.engines] == [2, 2] and made.lost() == ["rollout-1"]


@pytest.mark.ray
def test_no_weights_are_sent_while_a_batch_is_sampled(crew):
    made = crew(delay_s=0.2)
    made.fleet.push_weights(1)
    pending = made.sampler.submit(BATCH, 1)
    made.fleet.push_weights(2)
    assert {rollout.min_policy_version for rollout in pending.result().rollouts} == {1}


@pytest.mark.ray
def test_engines_sleep_only_after_sampling_and_are_awake_with_the_next_weights(crew):
    made = crew(delay_s=0.2)
    made.fleet.push_weights(1)
    pending = made.sampler.submit(BATCH, 1)
    made.fleet.sleep()
    assert pending.result().scores == pytest.approx(expected_scores(), abs=0)
    assert made.asleep() == [True, True]
    assert [engine.holds for engine in made.fleet.engines] == [1, 1]
    made.fleet.push_weights(2)
    assert made.asleep() == [False, False] and made.lost() == []


@pytest.mark.ray
def test_an_engine_that_dies_or_fails_on_its_way_to_sleep_is_loaded_again_and_sleeps_too(crew):
    import ray

    made = crew()
    made.fleet.push_weights(1)
    made.send(signal.SIGKILL, made.handles[0])
    ray.get(made.handles[1].break_down.remote(), timeout=30)
    made.fleet.sleep()
    assert made.asleep() == [True, True]
    assert [engine.holds for engine in made.fleet.engines] == [None, None]
    assert made.lost() == ["rollout-0", "rollout-1"]
    made.fleet.push_weights(2)
    assert [engine.holds for engine in made.fleet.engines] == [2, 2]


@pytest.mark.ray
def test_the_learner_waits_for_an_engine_that_is_away(crew):
    made = crew()
    made.fleet.push_weights(1)
    made.send(signal.SIGKILL, made.handles[0])
    made.sampler.sample(REQUESTS, 1)
    made.fleet.sleep()
    assert made.fleet.engines[0].returning is None
    assert made.asleep() == [True, True] and made.lost() == ["rollout-0"]


@pytest.mark.ray
def test_a_finished_batch_may_be_asked_for_again_after_newer_weights(crew):
    """As a checkpoint does with the batches in flight."""
    made = crew()
    made.fleet.push_weights(1)
    pending = made.sampler.submit(BATCH, 1)
    first = pending.result()
    made.fleet.push_weights(2)
    assert pending.result() is first and made.lost() == []


@pytest.mark.ray
def test_a_judge_that_dies_scores_again_and_is_told_once(crew):
    made = crew(delay_s=0.2)
    pending = made.sampler.submit(BATCH, 0)
    made.send(signal.SIGKILL, made.judge_handles[0], after_s=0.5)
    assert pending.result().scores == pytest.approx(expected_scores(), abs=0)
    assert made.lost() == ["brevity"]


@pytest.mark.ray
def test_one_failure_too_many_ends_the_run_and_says_so(crew):
    made = crew(max_failures=1)
    made.fleet.push_weights(1)
    made.send(signal.SIGKILL, made.handles[0])
    made.sampler.sample(REQUESTS, 1)
    made.send(signal.SIGKILL, made.handles[1])
    with pytest.raises(RunFailed, match=r"2 failures within 3600 s \(cluster.max_failures = 1\), the last: rollout-1"):
        made.sampler.sample(REQUESTS, 1)


def test_failures_count_only_within_their_window(tmp_path):
    now = [0.0]
    config = ClusterConfig(max_failures=2, failure_window_s=100)
    counted = Failures(config, tmp_path, say=lambda text: None, clock=lambda: now[0])
    for time_s in (0, 60, 120, 180, 240):
        for later_s in (0, 3, 20):  # of the same incident
            now[0] = time_s + later_s
            counted.add("rollout-0", "gone", action="started again")
    now[0] = 275
    with pytest.raises(RunFailed, match="3 failures within 100 s"):
        counted.add("learner", "rank 1 died", action="everything again")
    noted = failures(tmp_path)
    assert len(noted) == 16 and noted[-1]["component"] == "learner" and noted[-1]["what"] == "rank 1 died"


def test_a_run_that_never_gets_past_a_checkpoint_ends_however_slowly_it_fails(tmp_path):
    now = itertools.count(0, 5000)
    config = ClusterConfig(max_failures=2)
    failures = Failures(config, tmp_path, say=lambda text: None, clock=now.__next__)
    starts: list[int] = []

    def attempt() -> int | None:
        failures.step = 50 if len(starts) > 1 else 0
        starts.append(failures.step)
        raise ComponentLost("an evaluation takes too long")

    with pytest.raises(RunFailed, match="lost 3 times on the way from step 50 to the next checkpoint"):
        failures.try_again(attempt)
    assert starts == [0, 0, 50, 50, 50]


def test_an_attempt_is_made_again_until_it_is_done_and_other_errors_end_it(tmp_path):
    failures = Failures(ClusterConfig(), tmp_path, say=lambda text: None)
    outcomes: Iterator[Exception | int | None] = iter([ComponentLost("late"), None, 143])

    def attempt() -> int | None:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert failures.try_again(attempt) == 143
    outcomes = iter([ValueError("a defect")])
    with pytest.raises(ValueError, match="a defect"):
        failures.try_again(attempt)


def test_an_error_of_the_work_itself_is_no_loss():
    assert not is_loss(RunFailed("staleness")) and not is_loss(ValueError("x"))
    assert is_loss(ComponentLost("late"))
