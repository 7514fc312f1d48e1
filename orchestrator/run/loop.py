"""The method, on one screen. Every stage behind it is named by what it does; see the package map for who they are.

Consumes prompts; produces policy versions. Up to `max_staleness` batches are sampled ahead of the update: sampling of
the next batch waits for the broadcast of the previous version, and the broadcast waits for sampling in flight, so a
batch is never more than `max_staleness` versions older than the policy it updates.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.config import LoopConfig
from orchestrator.errors import RunFailed


class Stages(Protocol):
    """What the loop drives."""

    batcher: Any
    sampler: Any
    learner: Any
    fleet: Any
    recorder: Any
    stop_requested: Any

    def evaluate(self, step: int, policy_version: int) -> Any: ...

    def checkpoint(self, next_step: int, policy_version: int, in_flight: list[Any]) -> Any: ...


def train(
    stages: Stages,
    config: LoopConfig,
    *,
    first_step: int,
    policy_version: int,
    evaluate_every: int,
    restored: Sequence[Any] = (),
) -> int:
    """Run optimizer steps `first_step .. config.steps - 1`; returns the number of the step after the last one done.

    `restored`: batches in flight from `first_step` on, when a checkpoint is continued.
    """
    in_flight: deque[Any] = deque(restored)
    empty_batches = 0
    for step in range(first_step, config.steps):
        while len(in_flight) <= config.max_staleness and step + len(in_flight) < config.steps:
            requests = stages.batcher.requests(step + len(in_flight))
            in_flight.append(stages.sampler.submit(requests, policy_version))

        with stages.recorder.stage("idle_learner"):
            scored = in_flight.popleft().result()
        staleness = policy_version - scored.min_policy_version
        if staleness > config.max_staleness:
            raise RunFailed(f"step {step}: staleness {staleness} exceeds loop.max_staleness = {config.max_staleness}")

        batch, statistics = stages.batcher.pairs(scored)
        empty_batches = 0 if batch.pairs else empty_batches + 1
        if empty_batches > config.max_empty_batches:
            raise RunFailed(
                f"step {step}: {empty_batches} batches in a row without a usable pair; {stages.recorder.hint()}"
            )
        report = sync = None
        if batch.pairs:
            with stages.recorder.stage("learn"):
                report = stages.learner.update(batch)
            policy_version += 1
            with stages.recorder.stage("sync"):
                sync = stages.fleet.push_weights(policy_version)

        stages.recorder.step(step, policy_version, scored, statistics, report, sync, staleness)
        if evaluate_every and (step + 1) % evaluate_every == 0 and step + 1 < config.steps:
            stages.evaluate(step + 1, policy_version)
        stopping = stages.stop_requested()
        if stopping or (config.checkpoint_every and (step + 1) % config.checkpoint_every == 0):
            stages.checkpoint(step + 1, policy_version, [pending.result() for pending in in_flight])
        if stopping:
            return step + 1
    return config.steps
