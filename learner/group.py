"""The learner on Ray: all ranks as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.processes import reserve
from learner.config import LearnerConfig
from learner.dealing import deal
from learner.examples import Batch
from learner.methods import MethodSection
from learner.ranks import Ranks
from learner.types import LearnerError, RankInfo, StepReport, SyncReport, WeightSyncError
from learner.worker import LearnerWorker
from rewards.environment import process_environment, whole_threads

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

SYNC_GRACE_S = 30.0
"""Rank 0 names the engine that missed the broadcast's deadline; the group waits this much longer for its word."""


class PendingUpdate:
    """An optimizer step under way."""

    def __init__(self, ranks: Ranks, references: Sequence[ObjectRef], *, step: int, timeout_s: float) -> None:
        self._ranks = ranks
        self._references = references
        self._step = step
        self._timeout_s = timeout_s

    def result(self, timeout: float | None = None) -> StepReport:
        """Wait for the step, at most `timeout` (default `learner.step_timeout_s`) seconds.

        Raises:
            LearnerError: a rank failed, died or missed the deadline; names the rank.
        """
        limit = self._timeout_s if timeout is None else timeout
        return self._ranks.wait(self._references, f"update of step {self._step}", timeout_s=limit)[0]


class LearnerGroup:
    """All ranks as one learner. Make it with `LearnerGroup.start`; usable as a context manager.

    Paths given to it must mean the same on every rank's node. After any LearnerError but a WeightSyncError the ranks
    are no longer in step: the group refuses further work.
    """

    def __init__(self, config: LearnerConfig, *, placement: PlacementGroup | None) -> None:
        self.config = config
        self.info: list[RankInfo] = []
        """What each rank runs."""
        self.make_room: Callable[[], None] = lambda: None
        """Called before the ranks compute; for those who share their GPUs."""
        self._ranks = Ranks([])
        self._placement = placement

    @classmethod
    def start(
        cls,
        config: LearnerConfig,
        *,
        model: str,
        method: MethodSection,
        total_steps: int,
        seed: int,
        run_name: str,
        reserved: PlacementGroup | None = None,
    ) -> LearnerGroup:
        """Reserve resources, start every rank side by side and wait until all have loaded.

        Actors are named `<run_name>/learner-<rank>`. `reserved` is the caller's own placement group with a bundle for
        each rank; without it one is made, and goes with the ranks. Other arguments as `learner.engine.LearnerEngine`.

        Raises:
            LearnerError: no room on the cluster, or a rank that could not load. Nothing is left running then.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        placement = reserved or reserve(
            [config] * config.ranks,
            group=f"{run_name}/learner",
            timeout_s=config.start_timeout_s,
            error=LearnerError,
        )
        actor = ray.remote(LearnerWorker)
        group = cls(config, placement=None if reserved else placement)
        try:
            for rank in range(config.ranks):
                options = actor.options(
                    name=f"{run_name}/learner-{rank}",
                    num_cpus=config.num_cpus,
                    num_gpus=config.num_gpus,
                    max_restarts=0,  # a fresh rank would be out of step with the others
                    runtime_env={"env_vars": _environment(config, model)},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
                )
                group._ranks.workers.append(options.remote(config, rank=rank))
            limit = config.start_timeout_s
            first = group._ranks.workers[0]
            [endpoint] = group._ranks.wait([first.endpoint.remote()], "start", timeout_s=limit)
            engine_options = {
                "model": model,
                "method": method,
                "total_steps": total_steps,
                "seed": seed,
            }
            group.info = group._ranks.call("start", *endpoint, engine_options, timeout_s=limit)
        except BaseException:
            group.close()
            raise
        return group

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of how the model computes, a line each."""
        return self.info[0].remarks

    def update(self, batch: Batch) -> StepReport:
        """One optimizer step; see `update_async`."""
        return self.update_async(batch).result()

    def update_async(self, batch: Batch) -> PendingUpdate:
        """Deal the examples to the ranks and start one optimizer step on the mean loss over all of them.

        Raises:
            LearnerError: there is none, or the ranks are no longer in step.
        """
        if not batch.examples:
            raise LearnerError(f"step {batch.step}: an update needs an example, got none")
        self.make_room()
        shares = deal(
            batch,
            ranks=self.config.ranks,
            micro_batch_tokens=self.config.micro_batch_tokens,
            longest_shared=self.info[0].longest_shared,
        )
        references = self._ranks.start("update", [(share,) for share in shares])
        return PendingUpdate(self._ranks, references, step=batch.step, timeout_s=self.config.step_timeout_s)

    def token_logprobs(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], *, reference: bool = False
    ) -> list[list[float]]:
        """Per response token, log pi(token | prompt and tokens before it), under the policy or the reference."""
        return self._of_responses("token_logprobs", prompt_ids, response_ids, reference)

    def top_tokens(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
    ) -> list[tuple[float, float]]:
        """Per response the means over its tokens of what the policy says of the ten likeliest next tokens.

        Returns:
            (entropy, - sum p log p in nats; mass, sum p) of each response.
        """
        return self._of_responses("top_tokens", prompt_ids, response_ids)

    def _of_responses(
        self,
        method: str,
        prompt_ids: Sequence[Sequence[int]],
        response_ids: Sequence[Sequence[int]],
        *more: bool,
    ) -> list:
        """Of each response what the ranks' `method` gives, which takes prompts, responses, rows and `more`."""
        ranks, total = self.config.ranks, len(prompt_ids)
        if total != len(response_ids):
            raise ValueError(f"one response per prompt, got {total} prompts and {len(response_ids)} responses")
        if not total:
            return []
        self.make_room()
        # Ranks need equal numbers of sequences: the last deal wraps around, and what it repeats is left out again.
        width = -(-total // ranks)
        hands = [[(rank + ranks * row) % total for row in range(width)] for rank in range(ranks)]
        longest = max(map(sum, zip(map(len, prompt_ids), map(len, response_ids), strict=True)))
        rows = max(1, self.config.micro_batch_tokens // longest)
        shares = [([prompt_ids[i] for i in hand], [response_ids[i] for i in hand], rows, *more) for hand in hands]
        references = self._ranks.start(method, shares)
        replies = self._ranks.wait(references, method, timeout_s=self.config.step_timeout_s)
        return [replies[index % ranks][index // ranks] for index in range(total)]

    def connect(self, handles: Sequence[ActorHandle], *, workers_per_engine: int = 1) -> None:
        """Meet the rollout engines; again after one was restarted.

        Args:
            handles: actor handles with `ready()` and the `weights_*` methods of `learner.senders`.
            workers_per_engine: GPUs (tensor-parallel size) of one engine.

        Raises:
            WeightSyncError: engines that receive in different ways, or that refuse the announcement.
        """
        from learner.senders import Engines

        engines = Engines(handles, timeout_s=self.config.sync_timeout_s)
        backends = [reply["weight_backend"] for reply in engines.wait(engines.start("ready"), "ready")]
        if len(set(backends)) != 1:
            raise WeightSyncError(f"rollout engines must all receive weights in one way, got {backends}")
        self._ranks.call("connect", list(handles), backends[0], workers_per_engine, timeout_s=self._sync_limit)

    def push_weights(self, policy_version: int) -> SyncReport:
        """Send all weights to every engine as `policy_version`, each tensor's checksum compared on arrival.

        Raises:
            WeightSyncError: an engine failed or missed the deadline, or received other bytes; names it. The engines
                refuse to generate until a push succeeds.
        """
        started = time.monotonic()
        manifest = self._ranks.call("push_weights", policy_version, timeout_s=self._sync_limit)[0]
        return SyncReport(manifest=manifest, seconds=time.monotonic() - started)

    def save_policy(self, path: str | Path) -> None:
        """Write the policy as a Hugging Face folder, atomically."""
        self._ranks.call("save_policy", Path(path).absolute(), timeout_s=self.config.step_timeout_s)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write weights and optimizer state into the directory `path`."""
        self._ranks.call("save_checkpoint", Path(path).absolute(), timeout_s=self.config.step_timeout_s)

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from `save_checkpoint`; the engines' weights are stale until the next `push_weights`."""
        self._ranks.call("load_checkpoint", Path(path).absolute(), timeout_s=self.config.step_timeout_s)

    def close(self) -> None:
        """End the ranks and give their resources back. Again is harmless."""
        from ray.util.placement_group import remove_placement_group

        self._ranks.close()
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    def __enter__(self) -> LearnerGroup:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def _sync_limit(self) -> float:
        return self.config.sync_timeout_s + SYNC_GRACE_S


def _environment(config: LearnerConfig, model: str) -> dict[str, str]:
    on_gpu = config.num_gpus > 0
    threads = None if on_gpu else whole_threads(config.num_cpus, config.threads)
    env = process_environment(model, threads=threads, num_gpus=config.num_gpus)
    return env if on_gpu else env | {"DS_ACCELERATOR": "cpu"}
