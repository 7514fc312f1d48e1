"""Low-rank adapters merged into an engine's own base weights: what travels is a hundredth of what they change.

Imported only inside engine processes.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open

from actors.tensors import checksum, merge_adapter
from actors.types import WeightTransferError
from rewards.environment import model_folder
from rewards.model_files import ModelError, weight_files

Named = tuple[str, torch.Tensor]
PINNED_SHARE = 0.25
"""Of the host memory that is free when engine and learner meet; each engine of a node counts for itself."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """What a sender announces of its adapters.

    Example:
        AdapterPlan(
            base={"model.norm.weight": "bfloat16"}, scaling={"model.layers.0.mlp.up_proj": 2.0}, transposed=()
        )
    """

    base: Mapping[str, str]
    """Name -> dtype, as the learner holds it, of every weight under the adapters."""
    scaling: Mapping[str, float]
    """Adapted module -> alpha / rank."""
    transposed: tuple[str, ...]
    """Adapted modules whose matrix is stored [in, out]."""


class AdapterMerger:
    """Turns adapters into the full weights of the layers that they change, in whatever order the halves arrive.

    The base stays in the model folder's files, mapped and not copied: engines of one node share what is cached. To a
    GPU it would go through pageable memory, so with `pin` what every update needs is pinned from its first read on.

    Args:
        model: Hugging Face folder or hub id that the engine has loaded.
        plan: the sender's announcement.
        fused: vLLM's fused module -> the modules of the checkpoint that it holds. Such a layer is loaded as a whole,
            so the parts without an adapter come from the base.
        device: where to merge.
        pin: copies a tensor into pinned host memory; None: nothing is kept.
        free_bytes: of host memory; what is kept takes at most `PINNED_SHARE` of it, or nothing is.

    Raises:
        WeightTransferError: a weight of the plan does not stand in the model's files under that name.
    """

    def __init__(
        self,
        model: str,
        *,
        plan: AdapterPlan,
        fused: Mapping[str, Iterable[str]],
        device: torch.device,
        pin: Callable[[torch.Tensor], torch.Tensor] | None = None,
        free_bytes: int = 0,
    ) -> None:
        self.plan = plan
        self._device = device
        self._files = tensor_files(model_folder(model))
        unknown = [name for name in plan.base if name not in self._files]
        if unknown:
            raise WeightTransferError(
                f"{unknown[0]!r} does not stand in {model!r} under that name ({len(unknown)} such "
                "tensors): its adapters cannot be merged here (learner.broadcast: full sends merged weights)"
            )
        parts_of = {part: tuple(parts) for parts in fused.values() for part in parts}
        self._weights_in: dict[str, list[str]] = {}
        for name in plan.base:
            self._weights_in.setdefault(name.rpartition(".")[0], []).append(name)
        self._layer_of: dict[str, tuple[str, ...]] = {}
        for module in plan.scaling:
            parent, _, leaf = module.rpartition(".")
            self._layer_of[module] = tuple(f"{parent}.{part}" for part in parts_of.get(leaf, (leaf,)))
        self._pin = pin
        self._pinned: dict[str, torch.Tensor] = {}
        self._kept = frozenset[str]() if pin is None else self._worth_keeping(free_bytes)
        self.forget()

    def forget(self) -> None:
        """Drop halves that wait for others."""
        self._halves: dict[str, torch.Tensor] = {}

    @cached_property
    def base_checksums(self) -> dict[str, int]:
        """Name -> hash of every weight of the plan, in the learner's dtype; read once, whoever comes and goes."""
        return {name: checksum(self._base(name)) for name in self.plan.base}

    def merged(self, arrived: Iterable[Named]) -> Iterator[Named]:
        """All weights of every layer whose adapters are complete now, under their checkpoint names."""
        for name, half in arrived:
            # vLLM packs several tensors into a buffer that the next ones overwrite
            self._halves[name] = half.to(self._device, copy=True)
            layer = self._layer_of[name.rpartition(".lora_")[0]]
            adapted = [module for module in layer if module in self.plan.scaling]
            if all(half_name in self._halves for module in adapted for half_name in _halves(module)):
                yield from self._weights_of(layer)
                for module in adapted:
                    for half_name in _halves(module):
                        del self._halves[half_name]

    def _weights_of(self, layer: tuple[str, ...]) -> Iterator[Named]:
        for module in layer:
            for name in self._weights_in.get(module, ()):
                yield name, self._merge(module, name) if name == f"{module}.weight" else self._base(name)

    def _merge(self, module: str, name: str) -> torch.Tensor:
        base = self._base(name)
        if module not in self.plan.scaling:
            return base
        lora_A, lora_B = (self._halves[half] for half in _halves(module))
        return merge_adapter(
            base, lora_A, lora_B, scaling=self.plan.scaling[module], transposed=module in self.plan.transposed
        )

    def _base(self, name: str) -> torch.Tensor:
        if name in self._pinned:
            return self._pinned[name].to(self._device, non_blocking=True)  # nobody writes to it again
        stored = self._files[name].get_tensor(name).to(getattr(torch, self.plan.base[name]))
        if self._pin is not None and name in self._kept:
            self._pinned[name] = self._pin(stored)
        return stored.to(self._device)

    def _worth_keeping(self, free_bytes: int) -> frozenset[str]:
        """The weights of all adapted layers; none where they are too large."""
        adapted = {module for layer in self._layer_of.values() for module in layer}
        names = frozenset(name for module in adapted for name in self._weights_in.get(module, ()))
        size = sum(
            math.prod(self._files[name].get_slice(name).get_shape()) * getattr(torch, self.plan.base[name]).itemsize
            for name in names
        )
        if size <= PINNED_SHARE * free_bytes:
            return names
        logger.warning(
            "the base under the adapters is read from its files at every update: %.1f GB of it would take more than "
            "%.0f %% of the %.1f GB of free host memory",
            *(size / 1e9, 100 * PINNED_SHARE, free_bytes / 1e9),
        )
        return frozenset()


def tensor_files(folder: Path) -> dict[str, safe_open]:
    """Tensor name -> the open safetensors file of the folder that holds it; empty when there are none.

    Raises:
        WeightTransferError: an index that does not fit the folder.
    """
    found: dict[str, safe_open] = {}
    try:
        paths = weight_files(folder)
    except ModelError as error:
        raise WeightTransferError(str(error)) from None
    for path in paths:
        file = safe_open(path, framework="pt")
        found |= dict.fromkeys(file.keys(), file)
    return found


def _halves(module: str) -> tuple[str, str]:
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
