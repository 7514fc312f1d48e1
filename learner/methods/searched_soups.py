"""Soups whose coefficients are searched instead of being w: on a grid off the simplex, or by a quadratic model."""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from learner.methods.method import Tried
from learner.methods.mo_odpo import PairSection
from learner.methods.rewarded_soups import RewardedSoups


class SearchSection(PairSection):
    """Settings of every method that tries merges."""

    tried: int = Field(default=32, ge=3)
    """Most merges that are tried, on `evaluate.normalizer_prompts` training prompts each."""
    largest: float = Field(default=1.0, gt=0)
    """Coefficient of an expert: each lies between 0 and this, whatever the others are."""


class SearchedSoups(RewardedSoups):
    """theta(w) = theta_0 + sum_k c_k (theta_k - theta_0), with the c of a grid that has the best mean w . s in a trial.

    The extrapolation of MVA (arXiv 2511.17579): coefficients need not sum to 1, so an objective is not given up for
    another where their experts do not collide. The experts are those of rewarded soups; the paper trains them one after
    the other, each kept apart from those before by HSIC on the adapters. With `largest` 1 the corners and the start are
    on the grid, so a one-hot w is answered by its expert unless another merge did better in the trial.
    """

    class Config(SearchSection):
        type: Literal["searched-soups"] = "searched-soups"

    config: SearchSection

    def candidates(self, num_objectives: int) -> list[tuple[float, ...]]:
        levels = next(n for n in itertools.count(2) if (n + 1) ** num_objectives - 1 > self.config.tried)
        return [c for c in grid(num_objectives, levels, self.config.largest) if any(c)]

    def coefficients(self, preference: Sequence[float], tried: Tried | None) -> list[float]:
        assert tried is not None
        worth_C = np.array(tried.rewards) @ np.array(preference)
        return list(tried.coefficients[int(worth_C.argmax())])


class MapMerging(SearchedSoups):
    """As `searched-soups`, by the c of a finer grid that a quadratic model of every objective finds best.

    MAP (arXiv 2406.07529): s_k(c) = a + b . c + c^T A c is fitted to the merges that were tried, by least squares. The
    paper searches the model for a whole Pareto set; here w says which point of it is wanted. Where the rewards of the
    tried merges are a quadratic the choice is exact.
    """

    class Config(SearchSection):
        type: Literal["map-merging"] = "map-merging"

    def coefficients(self, preference: Sequence[float], tried: Tried | None) -> list[float]:
        assert tried is not None
        known_CK, rewards_CK = np.array(tried.coefficients), np.array(tried.rewards)
        model, *_ = np.linalg.lstsq(quadratic_terms(known_CK), rewards_CK @ np.array(preference), rcond=None)
        count = known_CK.shape[1]
        levels = max(2, int(FINE ** (1 / count)))
        fine_GK = np.array(grid(count, levels, self.config.largest))
        return [float(c) for c in fine_GK[int((quadratic_terms(fine_GK) @ model).argmax())]]


FINE = 10_000
"""Points at most that the quadratic model is asked about."""


def grid(num_objectives: int, levels: int, largest: float) -> list[tuple[float, ...]]:
    """All vectors of evenly spaced coefficients, from 0 to `largest`."""
    steps = [largest * step / (levels - 1) for step in range(levels)]
    return list(itertools.product(steps, repeat=num_objectives))


def quadratic_terms(c: np.ndarray) -> np.ndarray:
    """[N, 1 + K + K (K + 1) / 2] of coefficients [N, K]: 1, c_k, and the products of every two."""
    pairs = itertools.combinations_with_replacement(range(c.shape[1]), 2)
    return np.column_stack([np.ones(len(c)), c, *(c[:, i] * c[:, j] for i, j in pairs)])
