"""Sample and score: rollout actors stream finished responses, reward actors score each group as it arrives.

Consumes a RequestBatch, produces a ScoredBatch. `submit` returns at once: a thread per batch in flight carries groups
from the engines to the judges, so sampling and scoring go on while the caller waits for the learner.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.reward import Judge
from actors.types import GenerationRequest, Rollout
from orchestrator.batching import RequestBatch, ScoredBatch
from orchestrator.errors import RunFailed


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
    ) -> Scored: ...

    def logprobs(
        self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]
    ) -> np.ndarray: ...


class Sampler:
    """Rollout actors and reward actors as one callable stage.

    Args:
        rollouts: handles of the rollout actors.
        rewards: objective name -> handles of its reward actors, in recipe order.
        timeout_s: deadline of one batch, from submission to its last score.
        max_in_flight: batches that may be in flight together (max_staleness + 1).
    """

    def __init__(
        self, rollouts: Sequence[Any], rewards: dict[str, list[Any]], *, timeout_s: float, max_in_flight: int = 1
    ) -> None:
        self.rollouts = list(rollouts)
        self.rewards = rewards
        self.timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(max_workers=max_in_flight, thread_name_prefix="sampler")

    def submit(self, batch: RequestBatch, policy_version: int) -> "Future[ScoredBatch]":
        streams = self._start(batch.requests, policy_version)
        return self._threads.submit(self._score_batch, batch, streams)

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        policy_version: int,
        *,
        judges: Sequence[Judge] = ("reward",),
        temperature: float | None = None,
    ) -> Scored:
        """Blocking form for evaluation and the normaliser; every request must ask for the same number of responses."""
        return self._collect(requests, self._start(requests, policy_version, temperature), judges)

    def logprobs(self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[N] summed log-probability of each response given its prompt, under the engines' current weights."""
        import ray

        shares = np.array_split(np.arange(len(prompt_ids)), len(self.rollouts))
        refs = [
            handle.logprobs.remote([prompt_ids[i] for i in share], [response_ids[i] for i in share])
            for handle, share in zip(self.rollouts, shares, strict=True)
        ]
        return np.concatenate([np.asarray(part, dtype=np.float64) for part in ray.get(refs, timeout=self.timeout_s)])

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, requests: Sequence[GenerationRequest], policy_version: int, temperature: float | None = None
    ) -> list[Any]:
        shares = [list(requests[i :: len(self.rollouts)]) for i in range(len(self.rollouts))]
        return [
            handle.generate.options(num_returns="streaming").remote(share, policy_version, temperature)
            for handle, share in zip(self.rollouts, shares, strict=True)
            if share
        ]

    def _score_batch(self, batch: RequestBatch, streams: list[Any]) -> ScoredBatch:
        scored = self._collect(batch.requests, streams, ("reward",))
        return ScoredBatch(
            batch=batch, rollouts=scored.rollouts, scores=scored.scores["reward"], seconds=scored.seconds
        )

    def _collect(self, requests: Sequence[GenerationRequest], streams: list[Any], judges: Sequence[Judge]) -> Scored:
        import ray

        started = time.monotonic()
        deadline = started + self.timeout_s
        rollouts: dict[str, Rollout] = {}
        pending: list[tuple[list[Rollout], dict[Judge, list[Any]]]] = []
        first_group = last_group = started
        while streams:
            ready, _ = ray.wait(streams, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RunFailed(
                    f"rollout actors: {len(rollouts)} of {len(requests)} requests finished within "
                    f"rollout.generate_timeout_s = {self.timeout_s:g} s"
                )
            stream: Any = ready[0]
            try:
                group: list[Rollout] = ray.get(next(stream), timeout=max(0.0, deadline - time.monotonic()))
            except StopIteration:
                streams.remove(stream)
                continue
            first_group = first_group if rollouts else time.monotonic()
            last_group = time.monotonic()
            rollouts.update({rollout.request.request_id: rollout for rollout in group})
            pending.append((group, {judge: self._score_group(group, judge, len(pending)) for judge in judges}))
        scores = self._gather(pending, judges, deadline)
        missing = [request.request_id for request in requests if request.request_id not in rollouts]
        if missing:
            raise RunFailed(
                f"rollout actors: {len(missing)} of {len(requests)} requests got no answer, first {missing[0]!r}"
            )
        return Scored(
            rollouts=tuple(rollouts[request.request_id] for request in requests),
            scores={judge: np.stack([scores[judge][request.request_id] for request in requests]) for judge in judges},
            seconds={"generate": last_group - started, "score": time.monotonic() - first_group},
        )

    def _score_group(self, group: list[Rollout], judge: Judge, turn: int) -> list[Any]:
        """One object ref per objective; reward models see the plain prompt, never the text of w."""
        prompts = [rollout.request.prompt for rollout in group for _ in rollout.responses]
        responses = [response.text for rollout in group for response in rollout.responses]
        return [
            replicas[turn % len(replicas)].score.remote(prompts, responses, judge) for replicas in self.rewards.values()
        ]

    def _gather(
        self,
        pending: list[tuple[list[Rollout], dict[Judge, list[Any]]]],
        judges: Sequence[Judge],
        deadline: float,
    ) -> dict[Judge, dict[str, np.ndarray]]:
        import ray

        by_request: dict[Judge, dict[str, np.ndarray]] = {judge: {} for judge in judges}
        for group, refs in pending:
            for judge in judges:
                try:
                    columns = ray.get(refs[judge], timeout=max(0.0, deadline - time.monotonic()))
                except ray.exceptions.GetTimeoutError:
                    raise RunFailed(
                        f"reward actors ({', '.join(self.rewards)}): no scores within {self.timeout_s:g} s"
                    ) from None
                per_response = iter(np.stack(columns, axis=-1))  # rows [K]
                for rollout in group:
                    by_request[judge][rollout.request.request_id] = np.stack(
                        [next(per_response) for _ in rollout.responses]
                    )
        return by_request
