"""Tensors of a policy under their Hugging Face names, bucket by bucket, from any ZeRO stage.

Either all its weights, adapters merged on the way out and a tied matrix once (`WeightSource`: the export, and the
broadcast to engines that are given everything), or its adapters alone (`AdapterSource`: the broadcast to engines that
merge them into their own copy of the base).
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from actors.tensors import checksum, merge_adapter
from learner.policy import PolicyModule
from learner.types import LearnerError, WeightEntry

ADAPTER = "default"
HALVES = ("lora_A", "lora_B")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """Name, dtype and full shape of one tensor, known without gathering it.

    Example: WeightSpec(name="model.norm.weight", dtype=torch.bfloat16, shape=(4096,))
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


class BucketSource(Protocol):
    """Tensors to send, in an order that stays, in buckets of at most `bucket_bytes` (a larger one travels alone).

    Under ZeRO-3 all of it is collective: every rank calls it, and iterates to the end.
    """

    bucket_bytes: int

    @property
    def specs(self) -> list[WeightSpec]: ...

    def buckets(self) -> Iterator[list[tuple[WeightSpec, Tensor]]]:
        """Lists of (spec, full tensor on its own device, contiguous). Tensors are valid until the next bucket."""
        ...

    @property
    def announcement(self) -> dict[str, Any]:
        """What the engines are told first: the name of every tensor they will get."""
        return {"names": [spec.name for spec in self.specs]}

    def base_checksums(self) -> dict[str, int]:
        """Name -> checksum of every weight that the engines must hold already, because it does not travel."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One tensor of a policy, and how to come by it."""

    spec: WeightSpec
    parts: tuple[Tensor, ...]
    """Parameters that must be whole when it is made."""
    make: Callable[[], Tensor]


def in_buckets(items: Iterable[T], *, limit: int, spec_of: Callable[[T], WeightSpec]) -> Iterator[list[T]]:
    """Items in their order, in lists of at most `limit` bytes; a larger one is a list of its own."""
    bucket: list[T] = []
    size = 0
    for item in items:
        num_bytes = spec_of(item).num_bytes
        if bucket and size + num_bytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += num_bytes
    if bucket:
        yield bucket


class PolicyTensors(BucketSource):
    """Tensors of a live policy, gathered bucket by bucket.

    Args:
        items: in the order in which they travel.
        bucket_bytes: see `BucketSource`.
    """

    def __init__(self, items: Sequence[Item], *, bucket_bytes: int) -> None:
        self.bucket_bytes = bucket_bytes
        self._items = list(items)

    @property
    def specs(self) -> list[WeightSpec]:
        return [item.spec for item in self._items]

    def buckets(self) -> Iterator[list[tuple[WeightSpec, Tensor]]]:
        for bucket in in_buckets(self._items, limit=self.bucket_bytes, spec_of=lambda item: item.spec):
            with _gather([part for item in bucket for part in item.parts]), torch.no_grad():
                yield [(item.spec, item.make().contiguous()) for item in bucket]


class WeightSource(PolicyTensors):
    """All weights of a policy; persistent buffers come last.

    Args:
        policy: the module DeepSpeed trains.
        bucket_bytes: see `BucketSource`.
        merged: with its adapters; False: the frozen base under them.

    Raises:
        LearnerError: an adapter sits on a tied matrix, whose two uses would need different merged weights, or on a
            layer that is not linear.
    """

    def __init__(self, policy: PolicyModule, *, bucket_bytes: int, merged: bool = True) -> None:
        causal_lm = policy.causal_lm
        adapted = _adapted_layers(causal_lm)
        items = []
        for name, tensor in [*causal_lm.named_parameters(), *_persistent_buffers(causal_lm)]:
            if ".lora_" in name:
                continue
            spec = WeightSpec(name=name.replace(".base_layer.", "."), dtype=tensor.dtype, shape=full_shape(tensor))
            layer = adapted.get(name) if merged else None
            halves = () if layer is None else tuple(_half(layer, half) for half in HALVES)
            items.append(Item(spec=spec, parts=(tensor, *halves), make=partial(merged_weight, tensor, layer)))
        super().__init__(items, bucket_bytes=bucket_bytes)


class AdapterSource(PolicyTensors):
    """Both halves of every adapter, one after the other: `<module>.lora_A.weight` [rank, in] and B's [out, rank].

    Args:
        policy: the module DeepSpeed trains, with adapters.
        bucket_bytes: see `BucketSource`.
    """

    def __init__(self, policy: PolicyModule, *, bucket_bytes: int) -> None:
        self._base = WeightSource(policy, bucket_bytes=bucket_bytes, merged=False)
        self._base_checksums: dict[str, int] | None = None
        layers = {
            name.removesuffix(".base_layer.weight"): layer for name, layer in _adapted_layers(policy.causal_lm).items()
        }
        items = []
        for module, layer in layers.items():
            for half in HALVES:
                tensor = _half(layer, half)
                spec = WeightSpec(name=f"{module}.{half}.weight", dtype=tensor.dtype, shape=full_shape(tensor))
                items.append(Item(spec=spec, parts=(tensor,), make=tensor.detach))
        super().__init__(items, bucket_bytes=bucket_bytes)
        self._adapter = {
            "base": {spec.name: spec.dtype_name for spec in self._base.specs},
            "scaling": {module: float(layer.scaling[ADAPTER]) for module, layer in layers.items()},
            "transposed": [module for module, layer in layers.items() if layer.fan_in_fan_out],
        }

    @property
    def announcement(self) -> dict[str, Any]:
        """Also how to merge what is named, and into which base."""
        return {**super().announcement, "adapter": self._adapter}

    def base_checksums(self) -> dict[str, int]:
        """Of the whole base. It never changes: gathered once."""
        if self._base_checksums is None:
            self._base_checksums = {
                spec.name: checksum(tensor) for bucket in self._base.buckets() for spec, tensor in bucket
            }
        return self._base_checksums


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Also of a parameter that ZeRO-3 has partitioned."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def entry(spec: WeightSpec, tensor: Tensor) -> WeightEntry:
    """Manifest line of a tensor as it is sent."""
    return WeightEntry(name=spec.name, dtype=spec.dtype_name, shape=spec.shape, checksum=checksum(tensor))


def _half(layer: Any, half: str) -> Tensor:
    return getattr(layer, half)[ADAPTER].weight


def merged_weight(tensor: Tensor, layer: Any) -> Tensor:
    """A parameter with the adapter of peft's `layer` around it (None: it has none), rounded to its dtype once."""
    if layer is None:
        return tensor.detach()
    lora_A, lora_B = (_half(layer, half).detach() for half in HALVES)
    return merge_adapter(tensor, lora_A, lora_B, scaling=float(layer.scaling[ADAPTER]), transposed=layer.fan_in_fan_out)


def _gather(tensors: list[Tensor]) -> contextlib.AbstractContextManager[None]:
    partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    stored = module.state_dict(keep_vars=True).keys()
    return (named for named in module.named_buffers() if named[0] in stored)


def _adapted_layers(causal_lm: nn.Module) -> dict[str, Any]:
    """Parameter name of each adapted matrix -> peft's layer around it."""
    adapted = {
        f"{name}.base_layer.weight": module
        for name, module in causal_lm.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }
    uses = Counter(id(parameter) for _, parameter in causal_lm.named_parameters(remove_duplicate=False))
    for name, layer in adapted.items():
        shown = name.removesuffix(".base_layer.weight")
        if ADAPTER not in layer.lora_A:
            raise LearnerError(f"learner.lora.target_modules: only linear layers can take an adapter, got {shown!r}")
        if uses[id(layer.base_layer.weight)] > 1:
            raise LearnerError(f"learner.lora.target_modules: {shown!r} shares its matrix with another layer")
    return adapted
