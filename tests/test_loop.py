"""The loop on fakes: order of calls, staleness bound, empty batches, stopping."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from orchestrator.errors import RunFailed
from orchestrator.run.loop import train
from orchestrator.sections import LoopConfig


@dataclass
class FakeProbe:
    due: frozenset

    def is_due(self, version, *, last=False):
        return version in self.due

    def __call__(self, version):
        return version / 1000


@dataclass
class FakeStages:
    """Every stage writes what it was asked into one list."""

    empty_steps: frozenset = frozenset()
    stop_after: int | None = None
    sampled_version: int | None = None
    stage_of: Callable[[int], int] | None = None  # first step of a step's stage, where a method samples by stages
    bound: int = 1
    calls: list = field(default_factory=list)
    staleness: list = field(default_factory=list)
    probed_versions: frozenset = frozenset()
    refreshed_before: frozenset = frozenset()
    probed: list = field(default_factory=list)
    sampled: dict = field(default_factory=dict)  # step -> version
    done: int = 0

    def __post_init__(self):
        self.batcher = SimpleNamespace(
            requests=lambda step: step,
            examples=self._examples,
            staleness=self._staleness,
            observe=lambda report: self.calls.append(("observe", report)),
        )
        self.sampler = SimpleNamespace(submit=self._submit)
        self.learner = SimpleNamespace(update=self._update)
        self.fleet = SimpleNamespace(push_weights=self._push)
        self.probe = FakeProbe(self.probed_versions)
        self.recorder = SimpleNamespace(
            stage=lambda name: contextlib.nullcontext(), step=self._step, hint=lambda: "hint"
        )

    def _submit(self, step, version):
        self.calls.append(("sample", step, version))
        self.sampled[step] = version
        future: Future = Future()
        made_by = version if self.sampled_version is None else self.sampled_version
        future.set_result(SimpleNamespace(step=step, min_policy_version=made_by))
        return future

    def _staleness(self, step):
        return self.bound if self.stage_of is None else step - self.stage_of(step)

    def _examples(self, scored):
        examples = () if scored.step in self.empty_steps else ("example",)
        return SimpleNamespace(step=scored.step, examples=examples), None

    def _update(self, batch):
        self.calls.append(("update", batch.step))
        return "report"

    def _push(self, version):
        self.calls.append(("push", version))
        return "sync"

    def _step(self, step, version, scored, statistics, updated, staleness):
        self.done += 1
        self.staleness.append(staleness)
        self.calls.append(("record", step, version, updated.report))
        self.probed.append(updated.probed)

    def refresh_is_due(self, step):
        return step in self.refreshed_before

    def refresh(self, step, version, in_flight):
        self.calls.append(("refresh", step, version, len(in_flight)))
        return list(in_flight)

    def evaluate(self, step, version):
        self.calls.append(("evaluate", step, version))

    def checkpoint(self, step, version, in_flight):
        self.calls.append(("checkpoint", step, version, [batch.step for batch in in_flight]))

    def stop_requested(self):
        return self.stop_after is not None and self.done >= self.stop_after


def run(stages, *, steps=4, first_step=0, evaluate_every=0, restored=(), **config):
    settings = LoopConfig(steps=steps, prompts_per_step=1, **config)
    stages.bound = settings.max_staleness
    return train(
        stages,
        settings,
        first_step=first_step,
        policy_version=first_step,
        evaluate_every=evaluate_every,
        restored=restored,
    )


def test_a_stop_at_the_last_step_saves_one_checkpoint():
    stages = FakeStages(stop_after=2)
    run(stages, steps=2)
    assert [call for call in stages.calls if call[0] == "checkpoint"] == [("checkpoint", 2, 2, [])]


def test_with_no_staleness_each_batch_is_sampled_by_the_policy_it_updates():
    stages = FakeStages()
    assert run(stages, steps=2, max_staleness=0) == 2
    assert stages.calls == [
        ("sample", 0, 0), ("update", 0), ("observe", "report"), ("push", 1), ("record", 0, 1, "report"),
        ("sample", 1, 1), ("update", 1), ("observe", "report"), ("push", 2), ("record", 1, 2, "report"),
        ("checkpoint", 2, 2, []),
    ]  # fmt: skip


def test_engines_and_learner_are_compared_where_it_is_due():
    stages = FakeStages(probed_versions=frozenset({1, 3}), empty_steps=frozenset({2}))
    run(stages, steps=4)
    assert stages.probed == [0.001, None, None, 0.003]


def test_judges_are_refreshed_before_the_step_that_they_shall_judge_is_sampled():
    stages = FakeStages(refreshed_before=frozenset({1}))
    run(stages, steps=2, max_staleness=0)
    assert [call[:2] for call in stages.calls if call[0] in ("sample", "refresh", "push")] == [
        ("sample", 0), ("push", 1), ("refresh", 1), ("sample", 1), ("push", 2),
    ]  # fmt: skip


def test_with_staleness_one_the_next_batch_is_sampled_before_the_update():
    stages = FakeStages()
    run(stages, steps=3, max_staleness=1)
    assert [call for call in stages.calls if call[0] in ("sample", "update")] == [
        ("sample", 0, 0), ("sample", 1, 0), ("update", 0), ("sample", 2, 1), ("update", 1), ("update", 2),
    ]  # fmt: skip


def test_a_method_of_stages_has_each_stage_sampled_by_the_policy_it_begins_with():
    stages = FakeStages(stage_of=lambda step: 0 if step < 3 else 3)
    run(stages, steps=6, max_staleness=0)
    assert stages.sampled == {0: 0, 1: 0, 2: 0, 3: 3, 4: 3, 5: 3}
    assert stages.staleness == [0, 1, 2, 0, 1, 2]
    asked = [call[:2] for call in stages.calls if call[0] in ("sample", "update")]
    assert asked[:4] == [("sample", 0), ("sample", 1), ("sample", 2), ("update", 0)]


@pytest.mark.parametrize("bound", [0, 1, 2, 5])
def test_staleness_never_exceeds_its_bound_and_every_step_is_done_once(bound):
    stages = FakeStages()
    run(stages, steps=8, max_staleness=bound)
    assert max(stages.staleness) == min(bound, 7)
    assert [call[1] for call in stages.calls if call[0] == "update"] == list(range(8))


def test_a_batch_older_than_the_bound_stops_the_run():
    with pytest.raises(RunFailed, match="staleness 2 exceeds"):
        run(FakeStages(sampled_version=0), steps=4, max_staleness=1)


def test_an_empty_batch_is_recorded_but_changes_nothing():
    stages = FakeStages(empty_steps=frozenset({1}))
    run(stages, steps=3, max_staleness=0)
    assert ("update", 1) not in stages.calls
    assert ("record", 1, 1, None) in stages.calls
    assert [call for call in stages.calls if call[0] == "push"] == [("push", 1), ("push", 2)]


def test_too_many_empty_batches_in_a_row_stop_the_run_with_a_hint():
    with pytest.raises(RunFailed, match="3 batches in a row without a usable example; hint"):
        run(FakeStages(empty_steps=frozenset(range(10))), steps=10, max_empty_batches=2)


def test_empty_batches_that_are_not_in_a_row_do_not_stop_the_run():
    assert run(FakeStages(empty_steps=frozenset({0, 1, 3, 4, 6, 7})), steps=9, max_empty_batches=2) == 9


@pytest.mark.parametrize(
    ("every", "expected"), [(3, [(3, [3]), (4, [])]), (2, [(2, [2]), (4, [])]), (50, [(4, [])]), (0, [(4, [])])]
)
def test_checkpoints_come_at_their_interval_and_once_after_the_last_step_evaluations_not_after_it(every, expected):
    stages = FakeStages()
    run(stages, steps=4, evaluate_every=2, checkpoint_every=every)
    assert [call for call in stages.calls if call[0] == "evaluate"] == [("evaluate", 2, 2)]
    assert [(call[1], call[3]) for call in stages.calls if call[0] == "checkpoint"] == expected


def test_a_stop_saves_a_checkpoint_and_leaves_after_the_step():
    stages = FakeStages(stop_after=2)
    assert run(stages, steps=9) == 2
    assert stages.calls[-1] == ("checkpoint", 2, 2, [2])


def test_a_resumed_run_starts_where_it_was_told():
    stages = FakeStages()
    assert run(stages, steps=5, first_step=3) == 5
    assert [call[1] for call in stages.calls if call[0] == "update"] == [3, 4]


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_a_run_continued_with_what_was_in_flight_does_what_the_undisturbed_one_does(bound):
    whole, first, second = FakeStages(), FakeStages(stop_after=3), FakeStages()
    run(whole, steps=6, max_staleness=bound)
    run(first, steps=6, max_staleness=bound)
    in_flight = first.calls[-1][3]
    restored = [first.sampler.submit(step, first.sampled[step]) for step in in_flight]
    run(second, steps=6, first_step=3, max_staleness=bound, restored=restored)
    kinds = ("update", "push", "record")
    expected = [call for call in whole.calls if call[0] in kinds]
    assert [call for call in [*first.calls, *second.calls] if call[0] in kinds] == expected
    assert {**first.sampled, **second.sampled} == whole.sampled
    assert first.staleness + second.staleness == whole.staleness
