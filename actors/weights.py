"""The engine's end of the weight broadcast: vLLM weight-transfer backends that can prove what arrived.

Two backends, one life cycle (start, any number of updates, finish) and one proof (a hash per received tensor):

    host   tensors arrive as bytes in the Ray object store; the CPU build, where vLLM ships no backend of its own
    nccl   vLLM's own NCCL broadcast with the same bookkeeping; the GPU build

Imported only inside engine processes. vLLM imports it there by the name in ``worker_extension_cls``, before it builds
the engine named by ``WeightTransferConfig.backend``, in tensor-parallel workers too.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_consumer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.adapters import AdapterMerger, AdapterPlan, tensor_files
from actors.tensors import tensor_hash, unsigned
from actors.types import WeightTransferError
from rewards.environment import one_line

VLLM_BACKENDS = {"host": "mi-epo-host", "nccl": "mi-epo-nccl"}
"""A sender's name for a backend -> the name it is registered under in vLLM."""
WORKER_EXTENSION = "actors.weights.WeightTransferExtension"


class LayerwiseTransferEngine(WeightTransferEngine):
    """Loads Hugging Face named tensors layer by layer and keeps a hash of each, taken before vLLM touches it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hashes: dict[str, torch.Tensor] = {}
        self._reloading = False
        self.is_open = False
        """Whether vLLM's worker has an update open: from its start to its end, or to the first bucket that failed."""
        self._adapters: AdapterMerger | None = None

    def expect(self, adapter: Mapping[str, Any] | None) -> dict[str, int]:
        """What will arrive: adapters as the sender describes them, or (None) full weights.

        Returns:
            name -> checksum of the base that adapters are merged into.
        """
        if adapter is None:
            self._adapters = None
            return {}
        plan = AdapterPlan(**adapter)
        if self._adapters is None or self._adapters.plan != plan:
            self._adapters = AdapterMerger(
                self.model_config.model,
                plan=plan,
                fused=getattr(self.model, "packed_modules_mapping", {}),
                device=self.device,
                pin=torch.Tensor.pin_memory if self.device.type == "cuda" else None,
                free_bytes=psutil.virtual_memory().available,
            )
        return self._adapters.base_checksums

    def start_weight_update(self) -> None:
        self.abandon()
        self._hashes = {}
        if self._adapters is not None:
            self._adapters.forget()
        initialize_layerwise_reload(self.model)
        self._reloading = self.is_open = True

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            super().update_weights(update_info)
        except BaseException:
            self.is_open = False
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        self._reloading = False
        # Symptom: after an update of a model with tied embeddings the CPU build answers with the old output head.
        # Cause: ParallelLMHead keeps its own packed copy of the shared matrix and no tensor of the update is named
        # after it, so the reload never repacks it. Delete when vLLM repacks tied heads itself; idempotent elsewhere.
        heads: list[Any] = [module for module in self.model.modules() if isinstance(module, ParallelLMHead)]
        for head in heads:
            head.quant_method.process_weights_after_loading(head)
        self.is_open = False

    def checksums(self) -> dict[str, int]:
        """Name -> `actors.tensors.checksum` of every tensor received since the last start."""
        return {name: unsigned(value) for name, value in self._hashes.items()}

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        model: Any = self.model
        named = list(tensors)
        self._hashes |= {name: tensor_hash(tensor) for name, tensor in named}
        model.load_weights(iter(named) if self._adapters is None else self._adapters.merged(named))
        if self.device.type == "cuda":
            # vLLM's consumer receives every bucket on a CUDA stream of its own, and what a bucket's end cuts in two (a
            # fused layer, an adapter) is put together on the second bucket's stream, which does not wait for the first.
            torch.cuda.current_stream(self.device).synchronize()

    def abandon(self) -> None:
        """Forget tensors that wait in half-received layers of an update that was broken off.

        What is left is a working (mixed) model; only a full push makes it right again.

        vLLM counts a layer's received elements across sessions until the layer is complete: what an aborted session
        left behind (query without key and value, say) would make the next one close the layer too early, silently.
        """
        if not self._reloading:
            return
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0
        finalize_layerwise_reload(self.model, self.model_config)
        self._reloading = False


@dataclass
class HostInitInfo(WeightTransferInitInfo):
    """Nothing to rendezvous: bytes come with the calls."""


@dataclass
class HostUpdateInfo(WeightTransferUpdateInfo):
    """One bucket of whole tensors.

    Example: HostUpdateInfo(names=["lm_head.weight"], dtype_names=["float32"], shapes=[[100, 64]], data=[uint8 [25600]])
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    data: list[np.ndarray]
    """uint8 views of each tensor's memory; read-only when they come from the object store without a copy."""


class HostTransferEngine(LayerwiseTransferEngine):
    """Weights from host memory."""

    init_info_cls = HostInitInfo
    update_info_cls = HostUpdateInfo

    def init_transfer_engine(self, init_info: HostInitInfo) -> None:
        pass

    def receive_weights(self, update_info: HostUpdateInfo) -> None:
        self._load(self._tensors(update_info))

    def shutdown(self) -> None:
        pass

    @staticmethod
    def _tensors(update: HostUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # loading only reads
            for name, dtype, shape, data in zip(
                update.names, update.dtype_names, update.shapes, update.data, strict=True
            ):
                raw = torch.from_numpy(data)
                expected = int(np.prod(shape, dtype=np.int64)) * getattr(torch, dtype).itemsize
                if raw.dtype != torch.uint8 or raw.numel() != expected:
                    raise ValueError(
                        f"{name}: {dtype} {list(shape)} takes {expected} bytes, got {raw.numel()} of {raw.dtype}"
                    )
                yield name, raw.view(getattr(torch, dtype)).view(shape)


class CheckedNCCLTransferEngine(LayerwiseTransferEngine, NCCLWeightTransferEngine):
    """vLLM's packed NCCL broadcast, with hashes of what came out of it."""

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self.model_update_group is None:
            raise RuntimeError("weights_init must come before the first update")
        if not self.packed:
            raise ValueError("init info: packed must be true, got false")
        packed_nccl_broadcast_consumer(
            iterator=(
                (name, (shape, getattr(torch, dtype)))
                for name, dtype, shape in zip(
                    update_info.names, update_info.dtype_names, update_info.shapes, strict=True
                )
            ),
            group=self.model_update_group,
            src=0,
            post_unpack_func=self._load,
            buffer_size_bytes=self.packed_buffer_size_bytes,
            num_buffers=self.packed_num_buffers,
            device=self.device,
        )


class WeightTransferExtension:
    """Calls that vLLM's own worker lacks; mixed into it, reached by ``collective_rpc`` with the method's name."""

    def expect_weights(self, adapter: Mapping[str, Any] | None) -> dict[str, int]:
        return self.weight_transfer_engine.expect(adapter)  # type: ignore[attr-defined]

    def received_checksums(self) -> dict[str, int]:
        return self.weight_transfer_engine.checksums()  # type: ignore[attr-defined]

    def abandon_weight_update(self) -> None:
        self.weight_transfer_engine.abandon()  # type: ignore[attr-defined]
        if self.weight_transfer_engine.is_open:  # type: ignore[attr-defined]
            self.finish_weight_update()  # type: ignore[attr-defined]


class WeightReceiver:
    """One engine's side of every update: in order, complete, and proved, or refused with the reason.

    Calls: ``check`` and ``init`` once per sender, then ``start``, ``update`` for each bucket, ``finish``, again and
    again. After a failure anywhere the model is unusable (or mixed) until the next complete round.

    Args:
        llm: vLLM's ``LLM``.
        backend: ``host`` or ``nccl``, as senders name it.
        model: the model folder, whose checkpoint names tell an incomplete announcement.
    """

    def __init__(self, llm: Any, *, backend: str, model: str) -> None:
        self.backend = backend
        self._llm = llm
        self._model = model
        self._announced: frozenset[str] = frozenset()
        self._received: set[str] = set()
        self._connected = False
        self._open = False
        self._own_base = True

    def check(self, info: Mapping[str, Any]) -> dict[str, int]:
        """Accept or refuse what a sender announces; as ``RolloutActor.weights_check``."""
        if self._connected:
            self._abandon()
            self._llm.shutdown_weight_transfer_engine()
        self._connected, self._announced = False, frozenset()
        backend, announced, adapter = info["backend"], frozenset(info["names"]), info.get("adapter")
        if backend != self.backend:
            raise WeightTransferError(f"this engine receives by {self.backend!r}, got {backend!r}")
        if adapter is not None and not self._own_base:
            raise WeightTransferError("this engine was given other weights than its model's own base")
        if adapter is None:
            self._check_announced(announced)
        base = self._llm.collective_rpc("expect_weights", args=(adapter,))[0]
        self._announced = announced
        self._takes_adapters = adapter is not None
        return base

    def init(self, info: Mapping[str, Any]) -> None:
        """Meet the sender; as ``RolloutActor.weights_init``."""
        if not self._announced:
            raise WeightTransferError("weights_init: weights_check comes first")
        self._llm.init_weight_transfer_engine({"init_info": dict(info)})
        self._connected = True

    def start(self) -> None:
        if not self._connected:
            raise WeightTransferError("weights_start: weights_init comes first")
        self._abandon()
        self._received = set()
        self._own_base = self._own_base and self._takes_adapters
        self._llm.start_weight_update()
        self._open = True

    def update(self, info: Mapping[str, Any], data: Sequence[np.ndarray] | None) -> None:
        if not self._open:
            raise WeightTransferError("weights_update: no update is open")
        payload = dict(info) if data is None else {**info, "data": list(data)}
        try:
            self._llm.update_weights({"update_info": payload})
        except Exception as error:
            self._open = False  # vLLM has closed the session as well
            raise WeightTransferError(f"weights_update: {one_line(error)}") from error
        self._received.update(info["names"])

    def finish(self, policy_version: int) -> dict[str, int]:
        if not self._open:
            raise WeightTransferError("weights_finish: no update is open")
        if self._received != self._announced:
            differing = sorted(self._received ^ self._announced)
            why = "did not arrive" if differing[0] in self._announced else "was not announced"
            raise WeightTransferError(f"weights_finish: {differing[0]!r} {why} ({len(differing)} such tensors)")
        self._llm.finish_weight_update(str(policy_version))
        self._open = False
        checksums, *others = self._llm.collective_rpc("received_checksums")
        if any(other != checksums for other in others):
            raise WeightTransferError("weights_finish: the tensor-parallel workers of this engine received other bytes")
        if not self._llm.reset_prefix_cache():
            raise WeightTransferError("weights_finish: vLLM kept the cached prefixes of the old weights")
        return checksums

    def _abandon(self) -> None:
        """Clear what a sender left behind that vanished between ``start`` and ``finish``."""
        if self._open:
            self._llm.collective_rpc("abandon_weight_update")
            self._open = False

    def _check_announced(self, announced: frozenset[str]) -> None:
        """Refuse a sender that would leave part of the model as it was.

        Only when every announced name stands in the checkpoint: a model whose trained parameters are named or fused
        otherwise than its checkpoint cannot be compared this way.
        """
        stored = tensor_files(Path(self._model)).keys()  # none of a hub id
        if not announced <= stored:
            return
        tied = {"lm_head.weight"} if self._llm.llm_engine.model_config.hf_config.tie_word_embeddings else set()
        missing = sorted(name for name in stored - announced - tied if not name.endswith("rotary_emb.inv_freq"))
        if missing:
            raise WeightTransferError(f"{missing[0]!r} is not announced ({len(missing)} such tensors)")


for _backend, _engine in (("host", HostTransferEngine), ("nccl", CheckedNCCLTransferEngine)):
    with contextlib.suppress(ValueError):  # this file was imported under two names: it is registered already
        WeightTransferEngineFactory.register_engine(VLLM_BACKENDS[_backend], _engine)
