"""Sample and score: rollout actors stream finished responses, reward actors score each group as it arrives.

Consumes a RequestBatch, produces a ScoredBatch. `submit` returns at once: a thread per batch in flight carries groups
from the engines to the judges, so sampling and scoring go on while the caller waits for the learner.

A batch is cut into as many shares as there are engines, whether all are there or not, and the share of an engine that
died is sampled again as a whole: so the same requests meet in an engine, and the same responses in a judge, as in an
undisturbed run, and the numbers are the same to the last bit.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actors.processes import leaves_process, losses
from actors.reward import Judge
from actors.types import GenerationRequest, Rollout
from orchestrator.cluster.fleet import EnginesLost, Fleet, Replica
from orchestrator.cluster.judging import Judges, ScoreCall
from orchestrator.errors import ComponentLost, RunFailed
from orchestrator.run.batching import RequestBatch, ScoredBatch
from rewards.environment import one_line

if TYPE_CHECKING:
    from ray import ObjectRefGenerator


Arrived = Callable[[int], object]
MOST_BREAKS = 3
"""Times that the same requests may break an engine; after that it is their fault, and a new engine would break too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Rollouts in request order with raw scores per judge, [num_requests, num_responses, K], NaN = missing.

    Example: Scored(rollouts=(Rollout(...),), scores={"reward": zeros([1, 2, K])}, seconds={"generate": 0.4})
    """

    rollouts: tuple[Rollout, ...]
    scores: dict[Judge, np.ndarray]
    seconds: dict[str, float]


class Sampling(Protocol):
    """What an evaluation needs of a sampler; see `Sampler` for the meaning."""

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        policy_version: int,
        *,
        judges: Sequence[Judge] = ("reward",),
        temperature: float | None = None,
        arrived: Arrived | None = None,
    ) -> Scored: ...

    def logprobs(
        self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]
    ) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class _Share:
    """One engine's part of a batch, on the way."""

    index: int
    requests: list[GenerationRequest]
    engine: Replica
    life: int
    stream: "ObjectRefGenerator"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A batch, on the way."""

    requests: Sequence[GenerationRequest]
    policy_version: int
    temperature: float | None
    shares: list[_Share]


class PendingBatch:
    """A batch that is being sampled and scored."""

    def __init__(self, sampler: "Sampler", batch: RequestBatch, policy_version: int) -> None:
        self._sampler = sampler
        self._batch = batch
        self._policy_version = policy_version
        self._future: Future[ScoredBatch] | None = sampler.start(batch, policy_version)

    def result(self) -> ScoredBatch:
        """Wait for it; the same again when asked again. When all engines were lost the batch is sampled again, if its
        weights are still to be had.

        Raises:
            ComponentLost: they are not, or something missed its deadline.
            RunFailed: too many failures.
        """
        return self._sampler.fleet.with_engines(self._policy_version, self._attempt)

    def _attempt(self) -> ScoredBatch:
        self._future = self._future or self._sampler.start(self._batch, self._policy_version)
        try:
            return self._future.result()
        except EnginesLost:
            self._future = None
            raise


class Sampler:
    """Rollout actors and reward actors as one callable stage.

    Args:
        fleet: the rollout engines.
        judges: the reward actors.
        timeout_s: deadline of one batch, from submission to its last score.
        threads: as many as batches may be in flight together (max_staleness + 1); `sample` needs none.
    """

    def __init__(self, fleet: Fleet, judges: Judges, *, timeout_s: float, threads: Executor | None = None) -> None:
        self.fleet = fleet
        self.judges = judges
        self.timeout_s = timeout_s
        self._breaks: Counter[tuple[int, str, int]] = Counter()
        self._threads = threads

    def submit(self, batch: RequestBatch, policy_version: int) -> PendingBatch:
        return PendingBatch(self, batch, policy_version)

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        policy_version: int,
        *,
        judges: Sequence[Judge] = ("reward",),
        temperature: float | None = None,
        arrived: Arrived | None = None,
    ) -> Scored:
        """Blocking form for evaluation and the normaliser; every request must ask for the same number of responses.

        Args:
            arrived: told how many requests were answered since it was last told.
        """
        return self.fleet.with_engines(
            policy_version, lambda: self._collect(self._start(requests, policy_version, temperature), judges, arrived)
        )

    def logprobs(self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[N] summed log-probability of each response given its prompt, under the engines' current weights."""
        version = self.fleet.version
        return self.fleet.with_engines(version, lambda: self._logprobs(prompt_ids, response_ids, version))

    def use_judges(self, fitted: Path) -> None:
        """From now on the ``current`` judges are those that lie in this folder."""
        self.judges.fitted = fitted

    def score(
        self, rollouts: Sequence[Rollout], judge: Judge, objectives: Sequence[str], *, timeout_s: float
    ) -> np.ndarray:
        """[B, N, A] of rollouts that have as many responses each, by the judges of some objectives.

        Raises:
            ComponentLost: a judge did not answer in time.
        """
        scores_RA = self.judges.of(rollouts, judge, objectives, time.monotonic() + timeout_s)
        return scores_RA.reshape(len(rollouts), -1, len(objectives))

    def start(self, batch: RequestBatch, policy_version: int) -> "Future[ScoredBatch]":
        """One attempt at a batch; its result may be EnginesLost."""
        assert self._threads is not None
        try:
            attempt = self._start(batch.requests, policy_version)
        except EnginesLost as error:
            failed: Future[ScoredBatch] = Future()
            failed.set_exception(error)
            return failed
        return self._threads.submit(self._score_batch, batch, attempt)

    def _score_batch(self, batch: RequestBatch, attempt: _Attempt) -> ScoredBatch:
        scored = self._collect(attempt, ("current",))
        return ScoredBatch(
            batch=batch, rollouts=scored.rollouts, scores=scored.scores["current"], seconds=scored.seconds
        )

    def _start(
        self, requests: Sequence[GenerationRequest], policy_version: int, temperature: float | None = None
    ) -> _Attempt:
        """`_collect` must follow: no weights are sent until it has all rollouts."""
        attempt = _Attempt(requests, policy_version, temperature, [])
        count = len(self.fleet.engines)
        for index in range(min(count, len(requests))):
            self._start_share(attempt, index, list(requests[index::count]))
        self.fleet.begin_sampling()
        return attempt

    def _start_share(self, attempt: _Attempt, index: int, requests: list[GenerationRequest]) -> None:
        engine = self.fleet.engine_for(index, attempt.policy_version)
        arguments = (requests, attempt.policy_version, attempt.temperature)
        life, stream = engine.call("generate", *arguments, num_returns="streaming")
        attempt.shares.append(_Share(index, requests, engine, life, stream))

    def _collect(self, attempt: _Attempt, judges: Sequence[Judge], arrived: Arrived | None = None) -> Scored:
        started = time.monotonic()
        deadline = started + self.timeout_s
        rollouts: dict[str, Rollout] = {}
        pending: list[tuple[list[Rollout], dict[Judge, list[ScoreCall]]]] = []
        first_group = last_group = started
        try:
            while attempt.shares:
                answered = self._next_group(attempt, len(rollouts), deadline)
                group = [rollout for rollout in answered if rollout.request.request_id not in rollouts]
                if not group:  # the end of a share, or one that is sampled again
                    continue
                last_group = time.monotonic()
                first_group = first_group if rollouts else last_group
                rollouts.update({rollout.request.request_id: rollout for rollout in group})
                turn = len(pending)
                pending.append((group, {judge: self.judges.start(group, judge, turn) for judge in judges}))
                if arrived is not None:
                    arrived(len(group))
        finally:
            self.fleet.end_sampling()
        missing = [request.request_id for request in attempt.requests if request.request_id not in rollouts]
        if missing:
            raise RunFailed(
                f"rollout actors: {len(missing)} of {len(attempt.requests)} requests got no answer, "
                f"first {missing[0]!r}"
            )
        scores = self._gather(pending, judges, deadline)
        return Scored(
            rollouts=tuple(rollouts[request.request_id] for request in attempt.requests),
            scores={
                judge: np.stack([scores[judge][request.request_id] for request in attempt.requests]) for judge in judges
            },
            seconds={"generate": last_group - started, "score": time.monotonic() - first_group},
        )

    def _next_group(self, attempt: _Attempt, num_done: int, deadline: float) -> list[Rollout]:
        """Whatever finishes next; empty when that is the end of a share, or its engine's."""
        import ray

        streams = {share.stream: share for share in attempt.shares}
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ComponentLost(
                f"{', '.join(share.engine.name for share in attempt.shares)}: {num_done} of {len(attempt.requests)} "
                f"requests finished within rollout.generate_timeout_s = {self.timeout_s:g} s"
            )
        share = streams[ready[0]]
        try:
            # Not next(): it would wait without end for a stream whose node is gone.
            reference = share.stream._next_sync(timeout_s=max(0.0, deadline - time.monotonic()))
            if reference.is_nil():
                raise ComponentLost(f"{share.engine.name}: its answer did not arrive in time")
            return ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except StopIteration:
            attempt.shares.remove(share)
        except losses() as error:
            attempt.shares.remove(share)
            self._count_break(share, attempt.policy_version, error)
            share.engine.died(share.life, error)
            self._start_share(attempt, share.index, share.requests)
        return []

    def _count_break(self, share: _Share, policy_version: int, error: Exception) -> None:
        """Raises RunFailed: the same requests break every engine that they are given to."""
        if not leaves_process(error):
            return
        first, count = share.requests[0].request_id, len(share.requests)
        self._breaks[policy_version, first, count] += 1
        if self._breaks[policy_version, first, count] >= MOST_BREAKS:
            raise RunFailed(
                f"{share.engine.name}: the same {count} requests, {first!r} and after, broke {MOST_BREAKS} engines one "
                f"after the other, the last by: {one_line(getattr(error, 'cause', None) or error)}"
            )

    def _gather(
        self,
        pending: Sequence[tuple[list[Rollout], dict[Judge, list[ScoreCall]]]],
        judges: Sequence[Judge],
        deadline: float,
    ) -> dict[Judge, dict[str, np.ndarray]]:
        by_request: dict[Judge, dict[str, np.ndarray]] = {judge: {} for judge in judges}
        for group, calls in pending:
            for judge in judges:
                per_response = iter(self.judges.scores(calls[judge], deadline))  # rows [K]
                for rollout in group:
                    by_request[judge][rollout.request.request_id] = np.stack(
                        [next(per_response) for _ in rollout.responses]
                    )
        return by_request

    def _logprobs(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        response_ids: Sequence[tuple[int, ...]],
        policy_version: int,
    ) -> np.ndarray:
        import ray

        parts = []
        for index, rows in enumerate(np.array_split(np.arange(len(prompt_ids)), len(self.fleet.engines))):
            arguments = ([prompt_ids[i] for i in rows], [response_ids[i] for i in rows])
            engine = self.fleet.engine_for(index, policy_version)
            parts.append((engine, *engine.call("logprobs", *arguments)))
        found = []
        for engine, life, reference in parts:
            try:
                found.append(np.asarray(ray.get(reference, timeout=self.timeout_s), dtype=np.float64))
            except losses() as error:
                engine.died(life, error)
                return self._logprobs(prompt_ids, response_ids, policy_version)
            except ray.exceptions.GetTimeoutError:
                raise ComponentLost(f"{engine.name}: no log-probabilities within {self.timeout_s:g} s") from None
        return np.concatenate(found)
