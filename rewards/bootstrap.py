"""How much of a front metric is the choice of prompts: bootstrap intervals over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewards.pareto import hypervolume, mean_inner_product

DRAWS = 400


def prompt_intervals(
    preferences: Any, scores: Any, reference: Any, *, rng: np.random.Generator, draws: int = DRAWS
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of MIP and hypervolume when prompts are drawn again, with replacement.

    The same prompts are drawn for every vector, as the same prompts were asked. Responses with a missing score are
    left out; a draw that leaves a vector without any is not counted.

    Args:
        preferences: float [N, K].
        scores: float [N, P, S, K]: S responses to each of P prompts under each vector, NaN where missing.
        reference: float [K], of the hypervolume.

    Returns:
        {"mip": (low, high), "hypervolume": (low, high)}; NaN when no draw counts.
    """
    scores_NPSK = np.asarray(scores, dtype=np.float64)
    complete_NPS: np.ndarray = np.isfinite(scores_NPSK).min(axis=-1)
    sums_NPK = np.where(complete_NPS[..., None], scores_NPSK, 0.0).sum(axis=2)
    counts_NP = complete_NPS.sum(axis=2)
    num_prompts = scores_NPSK.shape[1]
    drawn_DP = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=draws)
    totals_DN = np.einsum("dp,np->dn", drawn_DP, counts_NP)
    counted_D = (totals_DN > 0).all(axis=1)
    points_DNK = np.einsum("dp,npk->dnk", drawn_DP[counted_D], sums_NPK) / totals_DN[counted_D][..., None]
    if not len(points_DNK):
        return dict.fromkeys(("mip", "hypervolume"), (float("nan"), float("nan")))
    values = {
        "mip": [mean_inner_product(preferences, points_NK) for points_NK in points_DNK],
        "hypervolume": [hypervolume(points_NK, reference) for points_NK in points_DNK],
    }
    return {
        name: (float(low), float(high))
        for name, (low, high) in ((name, np.quantile(drawn, (0.025, 0.975))) for name, drawn in values.items())
    }
