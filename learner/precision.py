"""Whether bfloat16 is worth it on this processor: measured in half a second, and said in one line."""

import time

import torch

WORTH = 1.2
"""Times float32's speed from which on bfloat16 is worth its rounding."""
MEASURED_S = 0.25
"""Of either side."""


def bfloat16_gain(rows: int, hidden: int, wide: int) -> float:
    """How many times as many products [rows, hidden] x [hidden, wide] this processor makes a second in bfloat16."""
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(rows, hidden, dtype=dtype), torch.ones(hidden, wide, dtype=dtype)
        left @ right  # what is packed or compiled once is not counted
        started, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < MEASURED_S or not count:
            left @ right
            count += 1
        speeds[dtype] = count / passed
    return speeds[torch.bfloat16] / speeds[torch.float32]


def remark(dtype: torch.dtype, gain: float) -> str | None:
    """What to say of a learner on CPU that computes in `dtype`; None: nothing that could be better."""
    if dtype == torch.bfloat16:
        if gain >= WORTH:
            return f"computing in bfloat16, whose matrix products are {gain:.1f} x as fast here as float32's"
        return (
            f"bfloat16's matrix products are only {gain:.1f} x as fast here as float32's: with learner.dtype=float32 "
            "rollout.dtype=float32 nothing would be lost"
        )
    if gain >= WORTH:
        return (
            f"bfloat16's matrix products are {gain:.1f} x as fast here as float32's: learner.dtype=native "
            "rollout.dtype=native would use them"
        )
    return None
