"""One rank of the learner on Ray: an actor around its DeepSpeed engine."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.processes import network_environment
from learner.config import LearnerConfig
from learner.dealing import Share
from learner.types import RankInfo, StepReport, WeightManifest, WeightSyncError
from rewards.environment import trim_heap, whole_threads

if TYPE_CHECKING:
    from learner.senders import WeightSender


class LearnerWorker:
    """One rank. Light until `start`, so that every failure of loading arrives as an error with a cause.

    Args:
        config: the recipe's `learner` section.
        rank: of this actor, from 0.
    """

    def __init__(self, config: LearnerConfig, *, rank: int) -> None:
        self.config = config
        self.rank = rank
        self._listener: socket.socket | None = None
        self._engine: Any = None
        self._sender: Any = None

    def __repr__(self) -> str:
        return f"LearnerWorker(rank={self.rank})"

    def endpoint(self) -> tuple[str, int]:
        """Where the ranks will meet (asked of rank 0): this node's address, and a port that listens from now on."""
        import ray

        self._listener = socket.create_server((ray.util.get_node_ip_address(), 0))
        return self._listener.getsockname()

    def start(self, address: str, port: int, options: dict[str, Any]) -> RankInfo:
        """Join the process group and load the engine; `options` are `LearnerEngine`'s keyword arguments."""
        os.environ["LOCAL_RANK"] = "0"  # Ray shows each actor its own GPU only
        os.environ.update(network_environment())
        import deepspeed
        import torch
        import transformers

        from learner.backend import join_group
        from learner.engine import LearnerEngine

        if not self.config.num_gpus:
            torch.set_num_threads(whole_threads(self.config.num_cpus, self.config.threads))
        join_group(self.config, address, port, rank=self.rank, listener=self._listener)
        self._engine = LearnerEngine(self.config, **options)
        self._give_back_cache()
        libraries = (torch, deepspeed, transformers)
        return RankInfo(
            rank=self.rank,
            pid=os.getpid(),
            versions={library.__name__: library.__version__ for library in libraries},
            longest_shared=self._engine.policy.longest_shared,
            remarks=self._engine.remarks(),
        )

    def update(self, share: Share) -> StepReport:
        report = self._engine.update(share)
        self._give_back_cache()
        return report

    def token_logprobs(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], rows: int, reference: bool
    ) -> list[list[float]]:
        logprobs = self._engine.token_logprobs(prompt_ids, response_ids, rows=rows, reference=reference)
        self._give_back_cache()
        return logprobs

    def top_tokens(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], rows: int
    ) -> list[tuple[float, float]]:
        found = self._engine.top_tokens(prompt_ids, response_ids, rows=rows)
        self._give_back_cache()
        return found

    def connect(self, handles: Sequence[Any], backend: str, workers_per_engine: int) -> None:
        if self._sender is None:  # kept, so that what it holds of an earlier group is given back
            self._sender = self._make_sender(backend, workers_per_engine)
        self._sender.connect(handles)

    def push_weights(self, policy_version: int) -> WeightManifest | None:
        return self._sender.send(policy_version)

    def save_policy(self, path: Path) -> None:
        self._engine.save_policy(path)

    def save_checkpoint(self, path: Path) -> None:
        self._engine.save_checkpoint(path)

    def load_checkpoint(self, path: Path) -> None:
        self._engine.load_checkpoint(path)

    def _make_sender(self, backend: str, workers_per_engine: int) -> WeightSender:
        """The sender for what the engines receive by: `host` or `nccl`."""
        source, timeout_s = self._engine.broadcast, self.config.sync_timeout_s
        if backend == "host":
            from learner.senders import HostSender

            return HostSender(source, rank=self.rank, timeout_s=timeout_s)
        if backend == "nccl":
            from learner.nccl import NcclSender

            return NcclSender(source, rank=self.rank, timeout_s=timeout_s, workers_per_engine=workers_per_engine)
        raise WeightSyncError(f"weight_backend must be 'host' or 'nccl', got {backend!r}")

    def _give_back_cache(self) -> None:
        """What is kept for the next pass goes to those who share the GPU, or the machine's memory."""
        if not self.config.num_gpus:
            trim_heap()
        elif self.config.num_gpus < 1:
            import torch

            torch.cuda.empty_cache()
