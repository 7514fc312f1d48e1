"""What both ends of a weight broadcast must compute alike: hashes of tensors, and a base with its adapter merged in.

The one torch file that the learner shares with the engines.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B1 - (1 << 32)
"""2^32 over the golden ratio, odd, as a signed number: its multiples modulo 2^32 lie more evenly than random ones."""
HASH_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""The same for 64 bits."""
BLOCK = 1 << 15
"""Numbers that the CPU takes at once: they stay in its cache, and torch gives no more than these to one thread."""
BLOCKS_ON_GPU = 512  # at once: 128 MiB of 64-bit words


def checksum(tensor: Tensor) -> int:
    """`tensor_hash` as an unsigned integer."""
    return unsigned(tensor_hash(tensor))


def unsigned(value: Tensor) -> int:
    """A 64-bit hash on whatever device as a number of 0 to 2^64 - 1."""
    return int(value.item()) % (1 << 64)


def tensor_hash(tensor: Tensor) -> Tensor:
    """int64 []: hash of the bytes and of where they stand, on the tensor's own device; 0 for an empty one.

    Not `torch.hash_tensor`, which is an order-free exclusive or: permuted rows have the same there, and a tensor of
    ones has 0. With F = `HASH_FACTOR`, v_i the bytes as 64-bit words (zeros behind the last) and u_i = F v_i folded
    onto its own low half, a block of words has sum_i (F (i + 1) | 1) u_i modulo 2^64; of several blocks the same is
    made again. Unfolded, what differs in high bits alone, as floats do, would vanish in the products.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    missing = -data.numel() % 8
    if missing:
        data = torch.cat([data, data.new_zeros(missing)])
    elif data.storage_offset() % 8:
        data = data.clone()
    return _hash_words(data.view(torch.int64))


def _hash_words(words: Tensor) -> Tensor:
    weights = torch.arange(1, BLOCK + 1, device=words.device) * HASH_FACTOR | 1
    while words.numel() > BLOCK:
        whole = words.numel() // BLOCK * BLOCK
        at_once = BLOCKS_ON_GPU if words.is_cuda else 1
        sums = [_folded_sum(rows, weights) for rows in words[:whole].view(-1, BLOCK).split(at_once)]
        if whole < words.numel():
            sums.append(_folded_sum(words[None, whole:], weights))
        words = torch.cat(sums)
    return _folded_sum(words[None], weights)[0]


def _folded_sum(words_RB: Tensor, weights: Tensor) -> Tensor:
    """[R] of blocks [R, at most BLOCK]."""
    mixed = words_RB * HASH_FACTOR
    return ((mixed ^ (mixed >> 32)) * weights[: words_RB.shape[1]]).sum(-1)


def merge_adapter(base: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: float, transposed: bool) -> Tensor:
    """base + scaling * B A in the base's dtype, added in float32 and rounded by `dithered`.

    Args:
        base: [out, in]; transposed: [in, out].
        lora_A: [rank, in].
        lora_B: [out, rank].
        scaling: alpha / rank.
    """
    delta = lora_B.float() @ lora_A.float()
    return dithered(base.float() + (delta.T if transposed else delta) * scaling, base.dtype)


def dithered(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 rounded to bfloat16 such that what is too small for one element survives on average; else plainly cast.

    A base in bfloat16 lies on its grid, and rounding to the nearest takes away whatever an adapter adds below half of
    a grid step: of an update of 0.16 % of the weights' size 11 % of the effect, of a smaller one more. Here an element
    is rounded up as often as its position between two grid points says. Which ones: by a fixed sequence over the
    positions, so that every engine, the export and the next run make the same weights. docs/precision.md has figures.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype)
    bits = values.contiguous().view(-1).view(torch.int32)
    rounded = torch.empty_like(bits, dtype=dtype)
    at_once = BLOCKS_ON_GPU * BLOCK if bits.is_cuda else BLOCK
    multiples = torch.arange(min(at_once, bits.numel()), dtype=torch.int32, device=bits.device) * GOLDEN
    for first, part in enumerate(bits.split(at_once)):
        offset = (first * at_once * GOLDEN + (1 << 31)) % (1 << 32) - (1 << 31)
        # The upper half of a multiple: 0 to 65,535, as many steps as lie between two neighbours on the grid.
        thresholds = (multiples[: part.numel()] + offset) >> 16 & 0xFFFF
        # The bits of a float grow with its size, so the size is rounded up; what lies on the grid stays there.
        upper = (part + thresholds) & -(1 << 16)
        rounded[first * at_once : first * at_once + part.numel()] = upper.view(torch.float32)
    return rounded.view(values.shape)
