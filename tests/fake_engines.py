"""The receiving end of a weight broadcast for tests, as a light Ray actor class."""

import asyncio
from typing import Any

import numpy as np
import torch

from actors.tensors import checksum
from actors.types import EngineFailedError


class FakeEngine:
    """The receiving half of a rollout engine: keeps and hashes what arrives, and misbehaves on demand."""

    def __init__(self) -> None:
        self.misbehaviour: str | None = None
        self.tensors: dict[str, np.ndarray] = {}
        self.checksums: dict[str, int] = {}
        self.calls: list[str] = []
        self.version: int | None = 0
        self.rendezvous: dict[str, Any] | None = None

    def ready(self) -> dict[str, Any]:
        return {"weight_backend": "host"}

    def weights_check(self, info: dict[str, Any]) -> dict[str, int]:
        if self.misbehaviour == "refuse":
            raise ValueError("the announced base is not here")
        self.announced = info["names"]
        return {}

    def weights_init(self, info: dict[str, Any]) -> None:
        self.rendezvous = info

    def weights_start(self) -> None:
        self.tensors, self.checksums, self.calls, self.version = {}, {}, ["start"], None

    async def weights_update(self, info: dict[str, Any], data: list[np.ndarray]) -> None:
        self.calls.append("update")
        if self.misbehaviour == "refuse":
            raise ValueError("no room for this bucket")
        if self.misbehaviour == "break":
            raise EngineFailedError("could not wake up")
        if self.misbehaviour == "sleep":
            # Not `time.sleep`, which would keep whoever asks next waiting for as long.
            await asyncio.sleep(60)
            raise TimeoutError("slept through its update")
        for name, dtype, shape, raw in zip(info["names"], info["dtype_names"], info["shapes"], data, strict=True):
            raw = raw.copy()
            if self.misbehaviour == "corrupt" and name == "model.norm.weight":
                raw[5] ^= 1
            tensor = torch.from_numpy(raw).view(getattr(torch, dtype)).view(shape)
            self.tensors[name] = tensor.numpy()
            self.checksums[name] = checksum(tensor)

    def weights_finish(self, policy_version: int) -> dict[str, int]:
        assert sorted(self.tensors) == sorted(
            self.announced
        )  # an actor with an `async` method begins calls in any order
        self.version = policy_version
        self.calls.append("finish")
        return self.checksums

    def state(self) -> tuple[int | None, list[str], dict[str, np.ndarray]]:
        return self.version, self.calls, self.tensors

    def rendezvous_info(self) -> dict[str, Any] | None:
        return self.rendezvous

    def misbehave(self, how: str | None) -> None:
        self.misbehaviour = how
