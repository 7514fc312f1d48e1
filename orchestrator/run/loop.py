"""The method, on one screen. Every stage behind it is named by what it does; see the package map for who they are.

Consumes prompts; produces policy versions. Up to `max_staleness` batches are sampled ahead of the update (or as many as
the method samples by one policy): sampling of the next batch waits for the broadcast of the previous version, and the
broadcast waits for sampling in flight, so a batch is never older than its bound when the policy is updated with it.
"""

from collections import deque
from collections.abc import Sequence

from orchestrator.errors import RunFailed
from orchestrator.run.stages import Pending, Stages, Updated
from orchestrator.sections import LoopConfig


def train(
    stages: Stages,
    config: LoopConfig,
    *,
    first_step: int,
    policy_version: int,
    evaluate_every: int,
    restored: Sequence[Pending] = (),
) -> int:
    """Run optimizer steps `first_step .. config.steps - 1`; returns the number of the step after the last one done.

    `restored`: batches in flight from `first_step` on, when a checkpoint is continued.
    """
    in_flight: deque[Pending] = deque(restored)
    empty_batches = 0
    for step in range(first_step, config.steps):
        if stages.refresh_is_due(step):
            in_flight = deque(stages.refresh(step, policy_version, in_flight))
        while (ahead := step + len(in_flight)) < config.steps and ahead - step <= stages.batcher.staleness(ahead):
            in_flight.append(stages.sampler.submit(stages.batcher.requests(ahead), policy_version))

        with stages.recorder.stage("idle_learner"):
            scored = in_flight.popleft().result()
        staleness, bound = policy_version - scored.min_policy_version, stages.batcher.staleness(step)
        if staleness > bound:
            raise RunFailed(f"step {step}: staleness {staleness} exceeds its bound {bound} (loop.max_staleness)")

        batch, statistics = stages.batcher.examples(scored)
        empty_batches = 0 if batch.examples else empty_batches + 1
        if empty_batches > config.max_empty_batches:
            hint = stages.recorder.hint()
            raise RunFailed(f"step {step}: {empty_batches} batches in a row without a usable example; {hint}")
        updated = Updated()
        if batch.examples:
            with stages.recorder.stage("learn"):
                report = stages.learner.update(batch)
            stages.batcher.observe(report)
            policy_version += 1
            with stages.recorder.stage("sync"):
                sync = stages.fleet.push_weights(policy_version)
            probe = stages.probe.is_due(policy_version, last=step + 1 == config.steps)
            probed = stages.probe(policy_version) if probe else None
            updated = Updated(report=report, sync=sync, probed=probed)

        stages.recorder.step(step, policy_version, scored, statistics, updated, staleness)
        if evaluate_every and (step + 1) % evaluate_every == 0 and step + 1 < config.steps:
            stages.evaluate(step + 1, policy_version)
        stopping = stages.stop_requested()
        due = config.checkpoint_every and (step + 1) % config.checkpoint_every == 0
        if stopping or due or step + 1 == config.steps:
            stages.checkpoint(step + 1, policy_version, [pending.result() for pending in in_flight])
        if stopping:
            return step + 1
    return config.steps
