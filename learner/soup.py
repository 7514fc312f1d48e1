"""Rewarded soups (arXiv 2306.04488): a policy whose weights are the average of several policies'.

For policies trained with adapters the average of the merged weights is exact: with sum_k w_k = 1,
sum_k w_k (W + B_k A_k) = W + [w_1 B_1, ..., w_K B_K] [A_1; ...; A_K], the adapters concatenated along their rank.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.tensors import dithered
from learner.types import LearnerError
from learner.weights import BucketSource, WeightSpec, in_buckets
from rewards.model_files import ModelError, tensor_headers

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class SoupSource(BucketSource):
    """Iterates averaged weights in buckets, as `learner.weights.WeightSource` iterates a policy's.

    Args:
        folders: [K] policies of one architecture, saved as safetensors.
        bucket_bytes: bound of one bucket; a larger tensor is a bucket of its own.

    Raises:
        LearnerError: a folder holds no safetensors, or other tensors than the first; names the folder.
    """

    def __init__(self, folders: Sequence[Path], *, bucket_bytes: int) -> None:
        self.bucket_bytes = bucket_bytes
        self._files = [_contents(Path(folder)) for folder in folders]
        self._weights = (1.0, *[0.0] * (len(folders) - 1))
        for folder, files in zip(folders, self._files, strict=True):
            if files.keys() != self._files[0].keys():
                raise LearnerError(f"{folder}: must hold the same tensors as {folders[0]}")

    def __len__(self) -> int:
        """K, the policies that can be mixed."""
        return len(self._files)

    @property
    def specs(self) -> list[WeightSpec]:
        return list(self._files[0])

    def mix(self, weights: Sequence[float]) -> None:
        """Average with these weights [K] from now on. A policy of weight 0 is not read, one of weight 1 not changed."""
        if len(weights) != len(self._files):
            raise ValueError(f"weights must be [{len(self._files)}], got {list(weights)}")
        self._weights = tuple(float(weight) for weight in weights)

    def buckets(self) -> Iterator[list[tuple[WeightSpec, Tensor]]]:
        """Lists of (spec, averaged tensor)."""
        from safetensors import safe_open

        with contextlib.ExitStack() as stack:
            handles: dict[Path, Any] = {}
            for path in {path for files in self._files for path in files.values()}:
                handles[path] = stack.enter_context(safe_open(path, framework="pt"))
            used = [(files, weight) for files, weight in zip(self._files, self._weights, strict=True) if weight]
            weights = [weight for _, weight in used]
            for bucket in in_buckets(self.specs, limit=self.bucket_bytes, spec_of=lambda spec: spec):
                yield [
                    (spec, average([handles[files[spec]].get_tensor(spec.name) for files, _ in used], weights))
                    for spec in bucket
                ]


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_k w_k t_k, summed in float32, in the first tensor's dtype as `actors.tensors.dithered` rounds.

    A single tensor of weight 1 comes back as it is.
    """
    if len(tensors) == 1 and weights[0] == 1:
        return tensors[0]
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.float(), alpha=weight)
    return dithered(total, tensors[0].dtype)


def _contents(folder: Path) -> dict[WeightSpec, Path]:
    """Every tensor of a policy's safetensors files and the file that holds it, in the order of the files."""
    try:
        headers = tensor_headers(folder)
    except ModelError as error:
        raise LearnerError(str(error)) from None
    if not headers:
        raise LearnerError(f"{folder}: holds no policy (no .safetensors file)")
    if others := sorted({header.dtype for header in headers.values()} - _DTYPES.keys()):
        raise LearnerError(f"{folder}: must hold tensors of {', '.join(_DTYPES)}, got {others[0]}")
    return {
        WeightSpec(name=name, dtype=_DTYPES[header.dtype], shape=header.shape): header.file
        for name, header in headers.items()
    }
