"""How a policy's weights reach the rollout engines. One small interface, two carriers:

    HostSender               Ray's object store; CPU engines; crosses nodes, survives restarted engines
    learner.nccl.NcclSender  vLLM's own packed NCCL broadcast; GPU engines

An engine is any Ray actor handle with `weights_check(info) -> {name: checksum}` (of the base that it merges adapters
into), `weights_init(info)`, `weights_start()`, `weights_update(info, data)` and `weights_finish(policy_version) ->
{name: checksum}` (of what it received). Which of its errors mean that it is lost, `actors.processes` tells.
Every rank calls `connect` and `send`: rank 0 does the talking, the others take part in gathering what ZeRO-3 has
partitioned. When rank 0 fails it still gathers to the end, so that no rank waits for it, and raises then.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.processes import leaves_process, losses
from learner.types import EngineLostError, WeightEntry, WeightManifest, WeightSyncError
from learner.weights import BucketSource, WeightSpec, entry

BUCKETS_IN_FLIGHT = 2
"""One is loaded by the engines while the next is gathered and put; more only costs object store."""


class WeightSender(Protocol):
    """What a rank needs to know about the way its weights travel."""

    def connect(self, handles: Sequence[Any]) -> None:
        """Meet the engines. Again after an engine was restarted."""
        ...

    def send(self, policy_version: int) -> WeightManifest | None:
        """Send everything and have it confirmed; the manifest on rank 0, None on the others."""
        ...


class Engines:
    """The rollout engines as rank 0 sees them: calls to all, one deadline, errors that name the engine."""

    def __init__(self, handles: Sequence[Any], *, timeout_s: float) -> None:
        self.handles = list(handles)
        self.timeout_s = timeout_s
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin a round: all its waits together may take `timeout_s`."""
        self._deadline = time.monotonic() + self.timeout_s

    def start(self, method: str, *args: Any) -> list[Any]:
        """Call `method(*args)` on every engine; object references in engine order."""
        return [getattr(handle, method).remote(*args) for handle in self.handles]

    def wait(self, references: Sequence[Any], method: str) -> list[Any]:
        """Results in engine order.

        Raises:
            EngineLostError: an engine died, broke or was late.
            WeightSyncError: an engine refused.
        """
        import ray

        results = []
        for index, reference in enumerate(references):
            try:
                results.append(ray.get(reference, timeout=max(0.0, self._deadline - time.monotonic())))
            except ray.exceptions.GetTimeoutError:
                late = f"rollout engine {index}: {method} not done within {self.timeout_s:g} s of the broadcast's start"
                raise EngineLostError(late, index, died=False) from None
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                failed = f"rollout engine {index}: {method} failed: {str(cause) or type(cause).__name__}"
                if isinstance(error, losses()) or isinstance(cause, losses()):
                    raise EngineLostError(failed, index, died=not leaves_process(cause)) from error
                raise WeightSyncError(failed) from error
        return results

    def check(self, announcement: Mapping[str, Any], base: Mapping[str, int]) -> None:
        """Announce to every engine what it will get, and compare the base it holds with the learner's.

        Raises:
            WeightSyncError: as `wait`, and when a weight that does not travel is another one there; names engine,
                tensor and both values.
        """
        held = self.wait(self.start("weights_check", announcement), "weights_check")
        for index, checksums in enumerate(held):
            for name, expected in base.items():
                if checksums[name] != expected:
                    raise WeightSyncError(
                        f"rollout engine {index}: {name!r} of its policy.model is not the learner's: checksum "
                        f"{checksums[name]:#018x} there, {expected:#018x} here (learner.broadcast: full sends it all)"
                    )

    def meet(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Have every engine join, each with its own info, once `check` has passed. Raises as `wait`."""
        asked = [handle.weights_init.remote(info) for handle, info in zip(self.handles, infos, strict=True)]
        self.wait(asked, "weights_init")

    def finish(self, policy_version: int, entries: Sequence[WeightEntry]) -> WeightManifest:
        """Put the update into service and compare what every engine received with what was sent.

        Raises:
            WeightSyncError: as `wait`; an EngineLostError when a checksum differs, with engine, tensor and both values.
        """
        received = self.wait(self.start("weights_finish", policy_version), "weights_finish")
        for index, checksums in enumerate(received):
            compare_checksums(index, entries, checksums)
        sizes = [torch.Size(item.shape).numel() * getattr(torch, item.dtype).itemsize for item in entries]
        return WeightManifest(policy_version=policy_version, entries=tuple(entries), total_bytes=sum(sizes))


def compare_checksums(engine: int, entries: Sequence[WeightEntry], received: Mapping[str, int]) -> None:
    """Raise EngineLostError unless `received` (name -> checksum) holds exactly the entries, unchanged."""
    for sent in entries:
        if sent.name not in received:
            problem = "was sent but not received"
        elif received[sent.name] != sent.checksum:
            problem = f"arrived changed: checksum {received[sent.name]:#018x}, sent {sent.checksum:#018x}"
        else:
            continue
        raise EngineLostError(f"rollout engine {engine}: {sent.name!r} {problem}", engine, died=False)
    extra = sorted(set(received) - {sent.name for sent in entries})
    if extra:
        raise EngineLostError(f"rollout engine {engine}: {extra[0]!r} was received but not sent", engine, died=False)


class HostSender:
    """Weights as bytes through Ray's object store: each bucket is put once and read by every engine without a copy."""

    def __init__(self, source: BucketSource, *, rank: int, timeout_s: float) -> None:
        self.source = source
        self.is_sender = rank == 0
        self.timeout_s = timeout_s

    def connect(self, handles: Sequence[Any]) -> None:
        """Announce the backend and every tensor's name to the engines."""
        base = self.source.base_checksums()
        if not self.is_sender:
            return
        self._engines = Engines(handles, timeout_s=self.timeout_s)
        self._engines.check({**self.source.announcement, "backend": "host"}, base)
        self._engines.meet([{}] * len(handles))

    def send(self, policy_version: int) -> WeightManifest | None:
        """See `WeightSender`. Raises WeightSyncError on rank 0."""
        if not self.is_sender:
            for _ in self.source.buckets():
                pass
            return None
        entries: list[WeightEntry] = []
        in_flight: deque[list[Any]] = deque()
        failure: WeightSyncError | None = None
        self._engines.restart_clock()
        try:
            self._engines.wait(self._engines.start("weights_start"), "weights_start")
        except WeightSyncError as error:
            failure = error
        for bucket in self.source.buckets():
            if failure is not None:
                continue
            try:
                entries += [entry(spec, tensor) for spec, tensor in bucket]
                in_flight.append(self._start_update(bucket))
                if len(in_flight) >= BUCKETS_IN_FLIGHT:
                    self._engines.wait(in_flight.popleft(), "weights_update")
            except WeightSyncError as error:
                failure = error
        if failure is not None:
            raise failure
        for references in in_flight:
            self._engines.wait(references, "weights_update")
        return self._engines.finish(policy_version, entries)

    def _start_update(self, bucket: list[tuple[WeightSpec, Tensor]]) -> list[Any]:
        import ray

        # numpy, never torch: Ray copies a numpy array into the store once and hands out views of it.
        try:
            data = ray.put([tensor.cpu().flatten().view(torch.uint8).numpy() for _, tensor in bucket])
        except ray.exceptions.RayError as error:
            raise WeightSyncError(f"a bucket does not fit Ray's object store: {error}") from error
        return self._engines.start("weights_update", _describe([spec for spec, _ in bucket]), data)


def _describe(specs: Sequence[WeightSpec]) -> dict[str, Any]:
    return {
        "names": [spec.name for spec in specs],
        "dtype_names": [spec.dtype_name for spec in specs],
        "shapes": [list(spec.shape) for spec in specs],
    }
