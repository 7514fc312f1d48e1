"""Calls to all ranks of the learner at once: one deadline, and an error that names the rank and the cause."""

import time
from collections.abc import Sequence
from typing import Any

from actors.processes import deaths
from learner.types import LearnerError, RankLostError, WeightSyncError
from rewards.environment import is_device_failure, one_line

DEATH_GRACE_S = 5.0
"""A rank's death breaks the collectives of the others first; wait this long for the cause before naming a symptom."""


class Ranks:
    """The actors of all ranks, in rank order, and whether they are still in step.

    After any failure but a WeightSyncError the ranks no longer are: further calls are refused.
    """

    def __init__(self, workers: Sequence[Any]) -> None:
        self.workers = list(workers)
        self._broken: str | None = None

    def call(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        """`method(*arguments)` on every rank; results in rank order. Raises as `start` and `wait`."""
        return self.wait(self.start(method, [arguments] * len(self.workers)), method, timeout_s=timeout_s)

    def start(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Start `method` on every rank with its own arguments; object references in rank order.

        Raises:
            LearnerError: the ranks are closed, or no longer in step; says since when.
        """
        if self._broken is not None:
            raise LearnerError(f"{method}: the learner cannot go on: {self._broken}")
        return [getattr(worker, method).remote(*own) for worker, own in zip(self.workers, arguments, strict=True)]

    def wait(self, references: Sequence[Any], what: str, *, timeout_s: float) -> list[Any]:
        """Results in rank order, from references in rank order.

        Raises:
            LearnerError: a rank died, failed or was late; in this order of precedence, naming it. A RankLostError for
                the first and the last.
        """
        import ray

        deadline = time.monotonic() + timeout_s
        ranks = {reference: rank for rank, reference in enumerate(references)}
        results: dict[int, Any] = {}
        failures: dict[int, Exception] = {}
        pending = list(references)
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                break
            try:
                results[ranks[done[0]]] = ray.get(done[0])
            except ray.exceptions.RayError as error:
                failures[ranks[done[0]]] = error
                if isinstance(error, deaths()):
                    break
                deadline = min(deadline, time.monotonic() + DEATH_GRACE_S)
        if failures:
            raise self._failure(failures, what)
        if pending:
            late = ", ".join(str(ranks[reference]) for reference in pending)
            self._broken = f"{what}: rank {late} did not answer within {timeout_s:g} s"
            raise RankLostError(self._broken)
        return [results[rank] for rank in range(len(references))]

    def close(self) -> None:
        """End the actors; again is harmless."""
        import ray

        self._broken = "the group is closed"
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    def _failure(self, failures: dict[int, Exception], what: str) -> LearnerError:
        """The error that tells most: a death, then the learner's own words, then whatever else."""
        for rank, error in failures.items():
            if isinstance(error, deaths()):
                self._broken = f"{what}: the process of rank {rank} died ({one_line(error)})"
                return RankLostError(self._broken)
        causes = {rank: getattr(error, "cause", None) or error for rank, error in failures.items()}
        for error in causes.values():
            if isinstance(error, WeightSyncError):
                return error
        for error in causes.values():
            if isinstance(error, LearnerError):
                self._broken = str(error)
                return error
        rank, cause = next(iter(causes.items()))
        self._broken = f"{what}: rank {rank} failed: {type(cause).__name__}: {one_line(cause)}"
        return RankLostError(self._broken) if is_mended_by_restart(cause) else LearnerError(self._broken)


def is_mended_by_restart(cause: BaseException) -> bool:
    """Whether a rank failed because another one, or an engine, did not answer, or because its GPU failed.

    For the first torch has no class that tells.
    """
    said = str(cause).lower()
    silent = any(word in said for word in ("gloo", "nccl", "connection", "timed out"))
    return isinstance(cause, RuntimeError) and (silent or is_device_failure(cause))
