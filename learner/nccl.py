"""The weight broadcast between GPUs: vLLM 0.32's native trainer side, for engines independent of each other."""

import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from learner.senders import Engines
from learner.types import WeightEntry, WeightManifest, WeightSyncError
from learner.weights import BucketSource, WeightSpec, entry


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

    def __init__(self, source: BucketSource, *, rank: int, timeout_s: float, workers_per_engine: int) -> None:
        self.source = source
        self.rank = rank
        self.timeout_s = timeout_s
        self.workers_per_engine = workers_per_engine
        self._trainer: Any = None
        self._client: _NcclClient | None = None

    def connect(self, handles: Sequence[Any]) -> None:
        """Open a fresh NCCL group of rank 0 and every engine worker; a group cannot survive a change of members.

        Raises:
            WeightSyncError: an engine refuses what is announced to it. Nothing is opened then, because an engine that
                did not come would leave this rank waiting for it in NCCL's rendezvous.
        """
        if self._trainer is not None:
            self._trainer.shutdown()
            self._trainer = None
        engines = Engines(handles, timeout_s=self.timeout_s)
        base = self.source.base_checksums()
        if self.rank == 0:
            engines.check({**self.source.announcement, "backend": "nccl"}, base)
        self._client = _NcclClient(engines, workers_per_engine=self.workers_per_engine)
        self._stream = _NcclStream(self.source)
        self._trainer = self._open(self._client, self._stream)

    def send(self, policy_version: int) -> WeightManifest | None:
        """See `WeightSender`. Raises WeightSyncError, or whatever NCCL raises, on rank 0."""
        if self._client is None or self._trainer is None:
            for _ in self.source.buckets():  # so that no other rank waits for this one
                pass
            raise WeightSyncError("connect must come before the first send")
        self._client.policy_version = policy_version
        self._client.engines.restart_clock()
        self._client.entries = self._stream.entries = []
        self._stream.rewind()
        try:
            self._trainer.send_weights()
        except Exception:
            self._stream.drain()
            raise
        return self._client.manifest if self.rank == 0 else None

    def _open(self, client: "_NcclClient", stream: "_NcclStream") -> Any:
        """vLLM's trainer side, whose group every engine worker has joined."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        address, port = _free_endpoint() if self.rank == 0 else ("", 0)
        info = NCCLTrainerInitInfo(
            rank=self.rank,
            master_address=address,
            master_port=port,
            world_size=1 + len(client.engines.handles) * self.workers_per_engine,
            packed_buffer_size_bytes=self.source.bucket_bytes,
        )
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=stream)


class _NcclClient:
    """vLLM's weight-sync client protocol over independent engines."""

    def __init__(self, engines: Engines, *, workers_per_engine: int) -> None:
        self.engines = engines
        self.workers_per_engine = workers_per_engine
        self.policy_version = 0
        self.entries: list[WeightEntry] = []
        self.manifest: WeightManifest | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        # vLLM's own Ray client hands every engine rank_offset 1, which makes duplicate NCCL ranks of several engines.
        offsets = [1 + index * self.workers_per_engine for index in range(len(self.engines.handles))]
        self.engines.meet([{**init_info, "rank_offset": offset} for offset in offsets])

    def start_weight_update(self) -> None:
        self.engines.wait(self.engines.start("weights_start"), "weights_start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.engines.wait(self.engines.start("weights_update", update_info, None), "weights_update")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.manifest = self.engines.finish(self.policy_version, self.entries)


class _NcclStream:
    """vLLM's weight-source protocol over `WeightSource`: `metadata()` and one pass of (name, tensor) per `rewind`."""

    def __init__(self, source: BucketSource) -> None:
        self.source = source
        self.entries: list[WeightEntry] = []
        self.rewind()

    def rewind(self) -> None:
        """The next pass begins at the first bucket."""
        self._buckets = self.source.buckets()

    def drain(self) -> None:
        """Gather what a failed pass left, so that no other rank waits for this one."""
        for _ in self._buckets:
            pass

    def metadata(self) -> list[WeightSpec]:
        return self.source.specs

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        torch.cuda.synchronize()  # the producer pulls on streams of its own; the optimizer step ran on another
        for bucket in self._buckets:
            # Copies, because ZeRO-3 frees what it gathered before the producer has packed it.
            copies = [(spec, tensor.clone()) for spec, tensor in bucket]
            self.entries += [entry(spec, copy) for spec, copy in copies]
            torch.cuda.current_stream().synchronize()
            for spec, copy in copies:
                copy.record_stream(torch.cuda.current_stream())
                yield spec.name, copy


def _free_endpoint() -> tuple[str, int]:
    """This node's address and a port that was free just now: vLLM listens there itself."""
    import ray

    with socket.create_server((ray.util.get_node_ip_address(), 0)) as probe:
        return probe.getsockname()
