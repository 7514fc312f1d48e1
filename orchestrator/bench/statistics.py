"""Means over seeds with their 95 % intervals. Pure numpy; NaN stands for "cannot be said"."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Quantile .975 of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Example: Estimate(mean=0.91, half_width=0.04, count=5)"""

    mean: float
    half_width: float  # of the 95 % interval of the mean over seeds; NaN with fewer than two
    count: int

    def show(self, digits: int) -> str:
        if not np.isfinite(self.mean):
            return "-"
        interval = f" ± {self.half_width:.{digits}f}" if np.isfinite(self.half_width) else ""
        return f"{self.mean:.{digits}f}{interval}"


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and half width of its 95 % t interval; missing values are left out."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)], dtype=float)
    if not len(known):
        return Estimate(mean=float("nan"), half_width=float("nan"), count=0)
    half_width = float("nan")
    if len(known) > 1:
        half_width = float(t_975(len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Estimate(mean=float(known.mean()), half_width=half_width, count=len(known))


def paired_difference(values: Sequence[float | None], baseline: Sequence[float | None]) -> Estimate:
    """Estimate of values - baseline, seed by seed; both in the order of the same seeds."""
    return estimate(
        [
            None if value is None or other is None else value - other
            for value, other in zip(values, baseline, strict=True)
        ]
    )


def t_975(degrees: int) -> float:
    """Quantile .975 of Student's t; beyond the table the first two terms of its expansion (error below 1e-3)."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be >= 1, got {degrees}")
    return T_975[degrees - 1] if degrees <= len(T_975) else 1.95996 + 2.3723 / degrees


def at_kl(curve: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Value of a training curve [(kl_to_start, value), ...] in training order where it first reaches `kl`.

    Linear between evaluations. None when the curve never gets there.
    """
    for (kl_0, value_0), (kl_1, value_1) in itertools.pairwise(curve):
        if kl_0 <= kl <= kl_1:
            share = (kl - kl_0) / (kl_1 - kl_0) if kl_1 > kl_0 else 1.0
            return value_0 + share * (value_1 - value_0)
    return None
