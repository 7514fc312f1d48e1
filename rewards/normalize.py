"""Scores brought to one scale: what the starting policy's responses scored, measured once. Moved where a judge
is fitted further.

Metrics and plots are in deviations from the start's mean; a method sees the scores through a `Transform` of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

NUM_QUANTILES = 101
"""Of each objective, evenly spaced, the smallest and the largest score included."""


class NormalizerError(ValueError):
    """Scores from which no scale can be measured, or that do not belong to this normaliser's objectives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """``(score - mean) / std`` per objective. Missing scores (NaN) stay missing.

    Example: ``Normalizer(objectives=("helpfulness", "brevity"), mean=(0.4, -31.0), std=(1.2, 8.5))``
    """

    objectives: tuple[str, ...]  # [K], the recipe's order
    mean: tuple[float, ...]  # [K], in the scorer's units
    std: tuple[float, ...]  # [K], in the scorer's units, > 0
    quantiles: tuple[tuple[float, ...], ...] = ()  # [Q, K], ascending; none where only mean and std are known

    def __post_init__(self) -> None:
        if not len(self.objectives) == len(self.mean) == len(self.std):
            raise NormalizerError(
                f"normalizer: {len(self.objectives)} objectives, {len(self.mean)} means and {len(self.std)} deviations"
            )
        for name, mean, std in zip(self.objectives, self.mean, self.std, strict=True):
            if not np.isfinite(mean) or not np.isfinite(std) or std <= 0:
                raise NormalizerError(f"normalizer: {name!r} needs a finite mean and std > 0, got {mean} and {std}")

    @classmethod
    def fit(cls, objectives: Sequence[str], scores: Any) -> Normalizer:
        """Measure mean and standard deviation (ddof 1) over the rows of scores [N, K] that have every score.

        Raises NormalizerError when fewer than two rows are complete or an objective scores every response alike.
        """
        scores_NK = np.asarray(scores, dtype=np.float64)
        if scores_NK.ndim != 2 or scores_NK.shape[1] != len(objectives):
            raise NormalizerError(f"normalizer: expected scores [N, {len(objectives)}], got {scores_NK.shape}")
        complete_NK = scores_NK[np.isfinite(scores_NK).all(axis=1)]
        if len(complete_NK) < 2:
            raise NormalizerError(
                f"normalizer: needs 2 responses with every score, got {len(complete_NK)} of {len(scores_NK)}"
            )
        mean_K, std_K = complete_NK.mean(axis=0), complete_NK.std(axis=0, ddof=1)
        for name, mean, std in zip(objectives, mean_K, std_K, strict=True):
            if std <= 1e-9 * max(1.0, abs(mean)):
                raise NormalizerError(
                    f"normalizer: objective {name!r} gives all {len(complete_NK)} responses the same score {mean:g}"
                )
        quantiles_QK = np.quantile(complete_NK, np.linspace(0, 1, NUM_QUANTILES), axis=0)
        return cls(
            objectives=tuple(objectives),
            mean=tuple(mean_K.tolist()),
            std=tuple(std_K.tolist()),
            quantiles=tuple(map(tuple, quantiles_QK.tolist())),
        )

    def apply(self, scores: Any) -> np.ndarray:
        """Raw scores [..., K] -> normalised scores [..., K], float64."""
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim == 0 or scores.shape[-1] != len(self.objectives):
            raise NormalizerError(f"normalizer: expected scores [..., {len(self.objectives)}], got {scores.shape}")
        return (scores - np.array(self.mean)) / np.array(self.std)

    def moved(self, stretch: np.ndarray, shift: np.ndarray) -> Normalizer:
        """That of scores ``stretch * score + shift`` [K], under which everything is normalised as it was before."""
        quantiles_QK = np.array(self.quantiles) * stretch + shift if self.quantiles else np.empty((0, 0))
        return Normalizer(
            objectives=self.objectives,
            mean=tuple((np.array(self.mean) * stretch + shift).tolist()),
            std=tuple((np.array(self.std) * stretch).tolist()),
            quantiles=tuple(map(tuple, quantiles_QK.tolist())),
        )

    def to_dict(self) -> dict[str, list[Any]]:
        """The scale alone, as it stands in a run's records."""
        return {"objectives": list(self.objectives), "mean": list(self.mean), "std": list(self.std)}

    def to_record(self) -> dict[str, list[Any]]:
        """The form in which a run keeps it: the quantiles too."""
        return self.to_dict() | {"quantiles": list(map(list, self.quantiles))}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Normalizer:
        """Undo ``to_record``, or ``to_dict``."""
        try:
            return cls(
                objectives=tuple(record["objectives"]),
                mean=tuple(float(value) for value in record["mean"]),
                std=tuple(float(value) for value in record["std"]),
                quantiles=tuple(tuple(map(float, row)) for row in record.get("quantiles", ())),
            )
        except KeyError as error:
            raise NormalizerError(f"normalizer: record has no {error.args[0]!r}, only {sorted(record)}") from None


class Transform(Protocol):
    """Raw scores [..., K] as a method sees them, relative to the starting policy's."""

    def __call__(self, scores: np.ndarray, base: Normalizer) -> np.ndarray: ...


def standardize(scores: np.ndarray, base: Normalizer) -> np.ndarray:
    """In standard deviations from the mean of the start."""
    return base.apply(scores)


SATISFACTORY = 0.85
"""Quantile of the start's scores from which on `log_sigmoid` counts a response as good (arXiv 2402.00742)."""


def log_sigmoid(scores: np.ndarray, base: Normalizer) -> np.ndarray:
    """log sigmoid(z - z of the start's quantile `SATISFACTORY`), z as `standardize`: the log-probability of being good.

    Their sum is that of being good in every objective, so what is low counts most and more of what is high hardly. The
    paper's reference is a quantile of each prompt's own samples; here one of all prompts.

    Raises NormalizerError when the base holds no quantiles.
    """
    if not base.quantiles:
        raise NormalizerError("normalizer: was measured without quantiles, from which what is good is told")
    good_K = base.apply(np.quantile(np.array(base.quantiles), SATISFACTORY, axis=0))
    return -np.logaddexp(0, -(base.apply(scores) - good_K))
