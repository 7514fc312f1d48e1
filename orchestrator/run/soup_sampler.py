"""A sampler in which every w is answered by its own average of several policies."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from actors.reward import Judge
from actors.types import GenerationRequest, Rollout
from learner.types import SyncReport
from orchestrator.run.batching import Renders
from orchestrator.run.sampling import Arrived, Sampling, Scored
from rewards.prompts import Prompt


class RememberingRenderer:
    """A renderer that knows afterwards which w a conditioned prompt was made from."""

    def __init__(self, renderer: Renders) -> None:
        self.renderer = renderer
        self.preference_of: dict[tuple[int, ...], tuple[float, ...]] = {}

    def token_ids(self, prompt: Prompt, preference: Sequence[float]) -> Sequence[int]:
        ids = self.renderer.token_ids(prompt, preference)
        self.preference_of[tuple(ids)] = tuple(float(weight) for weight in preference)
        return ids


class Mixture(Protocol):
    """`learner.soup.SoupSource`, as far as asking goes."""

    def mix(self, weights: Sequence[float]) -> None: ...

    def __len__(self) -> int: ...


class Broadcast(Protocol):
    """`orchestrator.cluster.fleet.Fleet`, as far as asking goes."""

    def push_weights(self, policy_version: int) -> SyncReport | None: ...


class SoupSampler:
    """`Sampling` in which every w is answered by its own average: the engines' weights follow the requests' w.

    Args:
        source, fleet: the parts (then, perhaps, the start) and the way into the engines.
        renderer: the one that makes every prompt asked here.
        coefficients: of the parts for a w.
    """

    def __init__(
        self,
        sampler: Sampling,
        source: Mixture,
        fleet: Broadcast,
        renderer: RememberingRenderer,
        coefficients: Callable[[Sequence[float]], Sequence[float]],
    ) -> None:
        self.sampler = sampler
        self.source = source
        self.fleet = fleet
        self.renderer = renderer
        self.coefficients = coefficients
        self._version = 0

    def sample(
        self,
        requests: Sequence[GenerationRequest],
        policy_version: int,
        *,
        judges: Sequence[Judge] = ("reward",),
        temperature: float | None = None,
        arrived: Arrived | None = None,
    ) -> Scored:
        rollouts: dict[int, Rollout] = {}
        scores: dict[Judge, dict[int, np.ndarray]] = {judge: {} for judge in judges}
        seconds: dict[str, float] = defaultdict(float)
        for preference, rows in _groups([request.preference for request in requests]).items():
            version = self._pour(preference)
            part = self.sampler.sample(
                [requests[row] for row in rows], version, judges=judges, temperature=temperature, arrived=arrived
            )
            rollouts |= dict(zip(rows, part.rollouts, strict=True))
            for judge in judges:
                scores[judge] |= dict(zip(rows, part.scores[judge], strict=True))
            for stage, value in part.seconds.items():
                seconds[stage] += value
        order = range(len(requests))
        return Scored(
            rollouts=tuple(rollouts[row] for row in order),
            scores={judge: np.stack([scores[judge][row] for row in order]) for judge in judges},
            seconds=dict(seconds),
        )

    def logprobs(self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[N], each under the average of the w that its prompt was made from."""
        found = np.empty(len(prompt_ids))
        asked = [self.renderer.preference_of[tuple(ids)] for ids in prompt_ids]
        for preference, rows in _groups(asked).items():
            self._pour(preference)
            found[rows] = self.sampler.logprobs([prompt_ids[row] for row in rows], [response_ids[row] for row in rows])
        return found

    def policy_and_start(
        self, prompt_ids: Sequence[tuple[int, ...]], response_ids: Sequence[tuple[int, ...]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities [N] under each prompt's average, and under the starting policy, the source's last part."""
        averaged = self.logprobs(prompt_ids, response_ids)
        self._send([*[0.0] * (len(self.source) - 1), 1.0])
        return averaged, self.sampler.logprobs(prompt_ids, response_ids)

    def _pour(self, preference: Sequence[float]) -> int:
        return self.send_merge(self.coefficients(preference))

    def send_merge(self, coefficients: Sequence[float]) -> int:
        """Have the engines answer by this merge; returns its version."""
        rest = 1 - sum(coefficients)
        start = [rest if abs(rest) > 1e-9 else 0.0] * (len(self.source) - len(coefficients))
        return self._send([*coefficients, *start])

    def _send(self, weights: Sequence[float]) -> int:
        self.source.mix(weights)
        self._version += 1
        self.fleet.push_weights(self._version)
        return self._version


def _groups(preferences: Sequence[tuple[float, ...]]) -> dict[tuple[float, ...], list[int]]:
    """Preference vector -> the rows that carry it, in order of first appearance."""
    rows: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for row, preference in enumerate(preferences):
        rows[tuple(preference)].append(row)
    return dict(rows)
