"""Full parameters of a policy under their Hugging Face names, bucket by bucket, from any ZeRO stage.

Adapters are merged on the way out; a tied matrix appears once. Used by the weight broadcast and by the export.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.logprobs import PolicyModule
from learner.types import LearnerError, WeightEntry

ADAPTER = "default"


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


class WeightSource:
    """Iterates a policy's weights in buckets. Collective under ZeRO-3: every rank iterates, to the end.

    Order and names never change while the policy lives. Persistent buffers come last.

    Args:
        policy: the module DeepSpeed trains.
        bucket_bytes: bound of one bucket; a larger tensor is a bucket of its own.

    Raises:
        LearnerError: an adapter sits on a tied matrix, whose two uses would need different merged weights, or on a
            layer that is not linear.
    """

    def __init__(self, policy: PolicyModule, *, bucket_bytes: int) -> None:
        self.bucket_bytes = bucket_bytes
        causal_lm = policy.causal_lm
        adapted = _adapted_layers(causal_lm)
        self._items: list[tuple[WeightSpec, Tensor, Any]] = []
        for name, tensor in [*causal_lm.named_parameters(), *_persistent_buffers(causal_lm)]:
            if ".lora_" in name:
                continue
            spec = WeightSpec(name=name.replace(".base_layer.", "."), dtype=tensor.dtype, shape=full_shape(tensor))
            self._items.append((spec, tensor, adapted.get(name)))

    @property
    def specs(self) -> list[WeightSpec]:
        return [spec for spec, _, _ in self._items]

    def buckets(self) -> Iterator[list[tuple[WeightSpec, Tensor]]]:
        """Lists of (spec, full tensor on its own device, contiguous). Tensors are valid until the next bucket."""
        bucket: list[tuple[WeightSpec, Tensor, Any]] = []
        size = 0
        for item in self._items:
            if bucket and size + item[0].num_bytes > self.bucket_bytes:
                yield from self._gathered(bucket)
                bucket, size = [], 0
            bucket.append(item)
            size += item[0].num_bytes
        if bucket:
            yield from self._gathered(bucket)

    @staticmethod
    def _gathered(bucket: list[tuple[WeightSpec, Tensor, Any]]) -> Iterator[list[tuple[WeightSpec, Tensor]]]:
        needed = [tensor for _, tensor, _ in bucket]
        needed += [
            half[ADAPTER].weight for _, _, layer in bucket if layer is not None for half in (layer.lora_A, layer.lora_B)
        ]
        with _gather(needed), torch.no_grad():
            yield [(spec, _merged(tensor, layer).contiguous()) for spec, tensor, layer in bucket]


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Also of a parameter that ZeRO-3 has partitioned."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def checksum(tensor: Tensor) -> int:
    """`torch.hash_tensor` as an unsigned integer; 0 for an empty tensor, which has none."""
    # .item(), because int() of a uint64 tensor overflows above 2^63
    return int(torch.hash_tensor(tensor).item()) if tensor.numel() else 0


def entry(spec: WeightSpec, tensor: Tensor) -> WeightEntry:
    """Manifest line of a tensor as it is sent."""
    return WeightEntry(name=spec.name, dtype=spec.dtype_name, shape=spec.shape, checksum=checksum(tensor))


def _merged(tensor: Tensor, layer: Any) -> Tensor:
    if layer is None:
        return tensor.detach()
    return (tensor.float() + layer.get_delta_weight(ADAPTER).float()).to(tensor.dtype)


def _gather(tensors: list[Tensor]) -> contextlib.AbstractContextManager[None]:
    partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


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
