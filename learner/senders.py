"""How a policy's weights reach the rollout engines. One small interface, two carriers:

    HostSender  Ray's object store, two buckets in flight; CPU engines; crosses nodes, survives restarted engines
    NcclSender  vLLM's own packed NCCL broadcast; GPU engines

An engine is any Ray actor handle with `weights_init(info)`, `weights_start()`, `weights_update(info, data)` and
`weights_finish(policy_version) -> {name: checksum}`. Every rank calls `connect` and `send`: rank 0 does the talking,
the others take part in gathering what ZeRO-3 has partitioned. When rank 0 fails it still gathers to the end, so that
no rank waits for it, and raises then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from learner.types import WeightEntry, WeightManifest, WeightSyncError
from learner.weights import WeightSource, WeightSpec, entry

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

    def start_each(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """Call `method(argument)` on every engine, each with its own argument."""
        return [
            getattr(handle, method).remote(argument) for handle, argument in zip(self.handles, arguments, strict=True)
        ]

    def wait(self, references: Sequence[Any], method: str) -> list[Any]:
        """Results in engine order.

        Raises:
            WeightSyncError: an engine failed, died, or the round's deadline is over.
        """
        import ray

        results = []
        for index, reference in enumerate(references):
            try:
                results.append(ray.get(reference, timeout=max(0.0, self._deadline - time.monotonic())))
            except ray.exceptions.GetTimeoutError:
                raise WeightSyncError(
                    f"rollout engine {index}: {method} not done within {self.timeout_s:g} s of the broadcast's start"
                ) from None
            except ray.exceptions.RayTaskError as error:
                raise WeightSyncError(f"rollout engine {index}: {method} failed: {error.cause or error}") from error
            except ray.exceptions.RayError as error:
                raise WeightSyncError(f"rollout engine {index}: {method} failed: {error}") from error
        return results

    def finish(self, policy_version: int, entries: Sequence[WeightEntry]) -> WeightManifest:
        """Put the update into service and compare what every engine received with what was sent.

        Raises:
            WeightSyncError: as `wait`, or a checksum differs; names engine, tensor and both values.
        """
        received = self.wait(self.start("weights_finish", policy_version), "weights_finish")
        for index, checksums in enumerate(received):
            compare_checksums(index, entries, checksums)
        sizes = [_num_bytes(item) for item in entries]
        return WeightManifest(policy_version=policy_version, entries=tuple(entries), total_bytes=sum(sizes))


def compare_checksums(engine: int, entries: Sequence[WeightEntry], received: Mapping[str, int]) -> None:
    """Raise WeightSyncError unless `received` (name -> checksum) holds exactly the entries, unchanged."""
    for sent in entries:
        if sent.name not in received:
            raise WeightSyncError(f"rollout engine {engine}: {sent.name!r} was sent but not received")
        if received[sent.name] != sent.checksum:
            raise WeightSyncError(
                f"rollout engine {engine}: {sent.name!r} arrived changed: checksum {received[sent.name]:#018x}, "
                f"sent {sent.checksum:#018x}"
            )
    extra = sorted(set(received) - {sent.name for sent in entries})
    if extra:
        raise WeightSyncError(f"rollout engine {engine}: {extra[0]!r} was received but not sent")


class HostSender:
    """Weights as bytes through Ray's object store: each bucket is put once and read by every engine without a copy."""

    def __init__(self, source: WeightSource, *, rank: int, timeout_s: float) -> None:
        self.source = source
        self.is_sender = rank == 0
        self.timeout_s = timeout_s

    def connect(self, handles: Sequence[Any]) -> None:
        """Announce the backend and every tensor's name to the engines."""
        if not self.is_sender:
            return
        self._engines = Engines(handles, timeout_s=self.timeout_s)
        info = {"backend": "host", "names": [spec.name for spec in self.source.specs]}
        self._engines.wait(self._engines.start("weights_init", info), "weights_init")

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


class NcclSender:
    """vLLM 0.32's native trainer side of a packed NCCL broadcast, with one NCCL rank per engine worker.

    Written against vLLM's sources and not run on GPUs by its authors. A broadcast whose receiver died cannot finish:
    the caller's own deadline must end this process then (`LearnerGroup.push_weights` has one). Learner and engine
    must not share a GPU.

    Args:
        source: what to send.
        rank: of this learner process; 0 sends.
        timeout_s: deadline of the engines' answers in one round.
        workers_per_engine: GPUs (tensor-parallel size) of one engine.
    """

    def __init__(self, source: WeightSource, *, rank: int, timeout_s: float, workers_per_engine: int) -> None:
        self.source = source
        self.rank = rank
        self.timeout_s = timeout_s
        self.workers_per_engine = workers_per_engine
        self._trainer: Any = None
        self._client: _NcclClient | None = None

    def connect(self, handles: Sequence[Any]) -> None:
        """Open a fresh NCCL group of rank 0 and every engine worker; a group cannot survive a change of members."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self._trainer is not None:
            self._trainer.shutdown()
        engines = Engines(handles, timeout_s=self.timeout_s)
        names = [spec.name for spec in self.source.specs]
        self._client = _NcclClient(engines, names=names, workers_per_engine=self.workers_per_engine)
        self._stream = _NcclStream(self.source)
        address, port = free_endpoint() if self.rank == 0 else ("", 0)
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                rank=self.rank,
                master_address=address,
                master_port=port,
                world_size=1 + len(handles) * self.workers_per_engine,
                packed_buffer_size_bytes=self.source.bucket_bytes,
            ),
            client=self._client,
            source=self._stream,
        )

    def send(self, policy_version: int) -> WeightManifest | None:
        """See `WeightSender`. Raises WeightSyncError, or whatever NCCL raises, on rank 0."""
        if self._client is None:
            raise WeightSyncError("connect must come before the first send")
        self._client.policy_version = policy_version
        self._client.engines.restart_clock()
        self._client.entries = self._stream.entries = []
        self._trainer.send_weights()
        return self._client.manifest if self.rank == 0 else None


class _NcclClient:
    """vLLM's weight-sync client protocol over independent engines."""

    def __init__(self, engines: Engines, *, names: list[str], workers_per_engine: int) -> None:
        self.engines = engines
        self.names = names
        self.workers_per_engine = workers_per_engine
        self.policy_version = 0
        self.entries: list[WeightEntry] = []
        self.manifest: WeightManifest | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        # vLLM's own Ray client hands every engine rank_offset 1, which makes duplicate NCCL ranks of several engines.
        common = {**init_info, "backend": "nccl", "names": self.names}
        offsets = [1 + index * self.workers_per_engine for index in range(len(self.engines.handles))]
        infos = [{**common, "rank_offset": offset} for offset in offsets]
        self.engines.wait(self.engines.start_each("weights_init", infos), "weights_init")

    def start_weight_update(self) -> None:
        self.engines.wait(self.engines.start("weights_start"), "weights_start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.engines.wait(self.engines.start("weights_update", update_info, None), "weights_update")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.manifest = self.engines.finish(self.policy_version, self.entries)


class _NcclStream:
    """vLLM's weight-source protocol over `WeightSource`: `metadata()` and a fresh pass of (name, tensor) each round."""

    def __init__(self, source: WeightSource) -> None:
        self.source = source
        self.entries: list[WeightEntry] = []

    def metadata(self) -> list[WeightSpec]:
        return self.source.specs

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        torch.cuda.synchronize()  # the producer pulls on streams of its own; the optimizer step ran on another
        for bucket in self.source.buckets():
            # Copies, because ZeRO-3 frees what it gathered before the producer has packed it.
            copies = [(spec, tensor.clone()) for spec, tensor in bucket]
            self.entries += [entry(spec, copy) for spec, copy in copies]
            torch.cuda.current_stream().synchronize()
            for spec, copy in copies:
                copy.record_stream(torch.cuda.current_stream())
                yield spec.name, copy


def _describe(specs: Sequence[WeightSpec]) -> dict[str, Any]:
    return {
        "names": [spec.name for spec in specs],
        "dtype_names": [spec.dtype_name for spec in specs],
        "shapes": [list(spec.shape) for spec in specs],
    }


def _num_bytes(item: WeightEntry) -> int:
    return torch.Size(item.shape).numel() * getattr(torch, item.dtype).itemsize


def make_sender(
    backend: str, source: WeightSource, *, rank: int, timeout_s: float, workers_per_engine: int
) -> WeightSender:
    """The sender for what the engines receive by: `host` or `nccl`."""
    if backend == "host":
        return HostSender(source, rank=rank, timeout_s=timeout_s)
    if backend == "nccl":
        return NcclSender(source, rank=rank, timeout_s=timeout_s, workers_per_engine=workers_per_engine)
    raise WeightSyncError(f"weight_backend must be 'host' or 'nccl', got {backend!r}")


def free_endpoint() -> tuple[str, int]:
    """This node's address and a port that was free just now."""
    import socket

    import ray

    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, probe.getsockname()[1]
