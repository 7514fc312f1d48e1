"""What the loop drives and what a run needs of its crew, as protocols: so that either can be faked, or replaced."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from actors.reward import Judge
from actors.types import Rollout
from learner.examples import Batch
from learner.types import StepReport, SyncReport
from orchestrator.run.batching import PairStatistics, RequestBatch, ScoredBatch
from orchestrator.run.sampling import Sampling

Ids = tuple[int, ...]


class Pending(Protocol):
    """A batch that is being sampled and scored, or was."""

    def result(self) -> ScoredBatch: ...


class Batches(Protocol):
    """`orchestrator.run.batching.Batcher`."""

    def staleness(self, step: int) -> int: ...

    def requests(self, step: int) -> RequestBatch: ...

    def examples(self, scored: ScoredBatch) -> tuple[Batch, PairStatistics]: ...

    def observe(self, report: StepReport) -> None: ...


class Submits(Protocol):
    """A sampler as the loop sees it."""

    def submit(self, batch: RequestBatch, policy_version: int) -> Pending: ...


class JudgedSampling(Sampling, Protocol):
    """`orchestrator.run.sampling.Sampler`: sampling whose judges may be fitted further on the way."""

    def use_judges(self, fitted: Path) -> None: ...

    def score(
        self, rollouts: Sequence[Rollout], judge: Judge, objectives: Sequence[str], *, timeout_s: float
    ) -> np.ndarray: ...


class CrewSampler(Submits, JudgedSampling, Protocol):
    """`orchestrator.run.sampling.Sampler`: batches for the loop, blocking calls for evaluations."""


class Updates(Protocol):
    """A learner as the loop sees it."""

    def update(self, batch: Batch) -> StepReport: ...


class TokenLogprobs(Protocol):
    """Per response token its log-probability under the policy in training, or under the frozen reference."""

    def __call__(
        self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids], *, reference: bool = False
    ) -> list[list[float]]: ...


class TopTokens(Protocol):
    """Per response the means over its tokens of (entropy in nats, mass) of the policy's ten likeliest next tokens."""

    def __call__(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> list[tuple[float, float]]: ...


class CrewLearner(Updates, Protocol):
    """`learner.group.LearnerGroup`."""

    @property
    def remarks(self) -> tuple[str, ...]: ...

    @property
    def token_logprobs(self) -> TokenLogprobs: ...

    @property
    def top_tokens(self) -> TopTokens: ...

    def save_policy(self, path: Path) -> None: ...

    def save_checkpoint(self, path: Path) -> None: ...

    def load_checkpoint(self, path: Path) -> None: ...


class Pushes(Protocol):
    """`orchestrator.cluster.fleet.Fleet`."""

    def push_weights(self, policy_version: int) -> SyncReport | None: ...


class Probes(Protocol):
    """`orchestrator.run.probe.Probe`."""

    def is_due(self, policy_version: int, *, last: bool = False) -> bool: ...

    def __call__(self, policy_version: int) -> "Probed": ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What was found of a policy version on fresh responses.

    Example: Probed(engine_mismatch=0.0003, top_entropy=0.71, top_mass=0.97)
    """

    engine_mismatch: float
    """Nats a token that engines and learner differ by."""
    top_entropy: float
    """Mean over tokens of - sum p log p of the ten likeliest next tokens, nats."""
    top_mass: float
    """Mean over tokens of their sum p, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """What came of a step's update; of a step without a usable example nothing did.

    Example: Updated(report=report, sync=sync, probed=probed)
    """

    report: StepReport | None = None
    sync: SyncReport | None = None
    probed: Probed | None = None
    """None: not measured in this step."""


class Records(Protocol):
    """`orchestrator.run.telemetry.Recorder`."""

    def stage(self, name: str) -> AbstractContextManager[None]: ...

    def step(
        self,
        step: int,
        policy_version: int,
        scored: ScoredBatch,
        statistics: PairStatistics,
        updated: Updated,
        staleness: int,
    ) -> None: ...

    def hint(self) -> str: ...


class Stages(Protocol):
    """What the loop drives."""

    @property
    def batcher(self) -> Batches: ...

    @property
    def sampler(self) -> Submits: ...

    @property
    def learner(self) -> Updates: ...

    @property
    def fleet(self) -> Pushes: ...

    @property
    def probe(self) -> Probes: ...

    @property
    def recorder(self) -> Records: ...

    @property
    def stop_requested(self) -> Callable[[], bool]: ...

    def refresh_is_due(self, step: int) -> bool: ...

    def refresh(self, step: int, policy_version: int, in_flight: Iterable[Pending]) -> Iterable[Pending]: ...

    def evaluate(self, step: int, policy_version: int) -> None: ...

    def checkpoint(self, next_step: int, policy_version: int, in_flight: Sequence[ScoredBatch]) -> None: ...
