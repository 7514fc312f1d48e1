"""Light actors with the methods of the real ones, for tests of what happens when one of them dies."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actors.types import (
    ActorFailedError,
    EngineFailedError,
    EngineRestartedError,
    GenerationRequest,
    Response,
    Rollout,
    StaleWeightsError,
)

POISON = 666


class FakeRollout:
    """Answers every request by its seed, two requests a group; `delay_s` between groups leaves time to die.

    It is loading as long as the file `gate` is there. A token id of `POISON` breaks it, however often it is loaded.
    """

    def __init__(self, delay_s: float = 0.0, gate: Path | None = None) -> None:
        self.delay_s = delay_s
        self.gate = gate
        self.version: int | None = None
        self.loaded = False
        self.asleep = False
        self.broken = False

    def break_down(self) -> None:
        """The process lives on, and fails in the middle of whatever it samples next."""
        self.broken = True

    def ready(self) -> dict[str, Any]:
        while self.gate is not None and self.gate.exists():
            time.sleep(0.05)
        if not self.loaded:
            self.loaded, self.version = True, 0
        return {"pid": os.getpid()}

    def receive(self, version: int) -> None:
        self.check_loaded()
        self.version, self.asleep = version, False

    def sleep(self) -> None:
        self.check_loaded()
        if self.broken:
            raise EngineFailedError("Memory usage increased after sleeping.")
        self.asleep = True

    def is_asleep(self) -> bool:
        return self.asleep

    def generate(
        self, requests: list[GenerationRequest], policy_version: int, temperature: float | None = None
    ) -> Iterator[list[Rollout]]:
        self.check_loaded()
        if policy_version != self.version:
            raise StaleWeightsError(f"holds {self.version}, asked for {policy_version}")
        for first in range(0, len(requests), 2):
            if self.broken and first:
                raise EngineFailedError("an illegal memory access was encountered")
            if any(POISON in request.prompt_ids for request in requests[first : first + 2]):
                raise EngineFailedError("index out of range in self")
            time.sleep(self.delay_s)
            yield [answer(request, policy_version) for request in requests[first : first + 2]]

    def logprobs(self, prompt_ids: list[Any], response_ids: list[Any]) -> list[float]:
        self.check_loaded()
        return [-float(len(response)) for response in response_ids]

    def check_loaded(self) -> None:
        if not self.loaded:
            raise EngineRestartedError("no model is loaded")


class FakeJudge:
    """A response is worth its length, and tells how many were scored together."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.broken = False

    def break_down(self) -> None:
        self.broken = True

    def ready(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def score(
        self,
        prompts: list[str],
        responses: list[str],
        judge: str,
        columns: dict[str, list[Any]],
        fitted: Path | None = None,
    ) -> np.ndarray:
        time.sleep(self.delay_s)
        if self.broken:
            raise ActorFailedError("an illegal memory access was encountered")
        return np.array([[len(response) + len(responses) / 1000] for response in responses])


def answer(request: GenerationRequest, policy_version: int) -> Rollout:
    response = Response(token_ids=(request.seed,), text="x" * request.seed, finish_reason="stop", logprobs=(-1.0,))
    return Rollout(
        request=request,
        responses=(response,) * request.num_responses,
        min_policy_version=policy_version,
        max_policy_version=policy_version,
    )
