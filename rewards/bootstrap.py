"""How far the figures of an evaluation hang on which prompts were asked: prompts drawn again, with replacement.

Shapes: N preference vectors, P prompts, S responses to each under each vector, K objectives, D draws.
"""

from typing import Any

import numpy as np

from rewards.pareto import hypervolume, mean_inner_product, spearman, steering_gap

Interval = tuple[float, float]
"""Lower and upper end; NaN where nothing can be said."""


def prompt_intervals(
    preferences: Any, scores: Any, reference: Any, *, rng: np.random.Generator, draws: int = 400
) -> dict[str, Interval | list[Interval]]:
    """95 % percentile intervals of MIP, hypervolume, CRD, steering gap and Spearman of each objective.

    The same prompts are drawn for every vector, as the same prompts were asked. Responses with a missing score are
    left out; a draw that leaves a vector with fewer than two is not counted.

    Args:
        preferences: float [N, K].
        scores: float [N, P, S, K], NaN where missing.
        reference: float [K], of the hypervolume.

    Returns:
        {"mip": (low, high), ..., "spearman": [(low, high) of each objective]}; NaN when no draw counts.
    """
    scores_NPSK = np.asarray(scores, dtype=np.float64)
    num_prompts, num_objectives = scores_NPSK.shape[1], scores_NPSK.shape[3]
    complete_NPS: np.ndarray = np.isfinite(scores_NPSK).min(axis=-1)
    known_NPSK = np.where(complete_NPS[..., None], scores_NPSK, 0.0)
    counts_NP = complete_NPS.sum(axis=2)
    products_NPKK = np.einsum("npsk,npsl->npkl", known_NPSK, known_NPSK)

    drawn_DP = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=draws)
    totals_DN = np.einsum("dp,np->dn", drawn_DP, counts_NP)
    counted_D = (totals_DN > 1).all(axis=1)
    drawn_DP, totals_DN = drawn_DP[counted_D], totals_DN[counted_D].astype(np.float64)
    points_DNK = np.einsum("dp,npk->dnk", drawn_DP, known_NPSK.sum(axis=2)) / totals_DN[..., None]
    products_DNKK = np.einsum("dp,npkl->dnkl", drawn_DP, products_NPKK) / totals_DN[..., None, None]
    covariance_DNKK = products_DNKK - points_DNK[..., :, None] * points_DNK[..., None, :]
    covariance_DNKK *= (totals_DN / (totals_DN - 1))[..., None, None]
    correlation_DK = np.reshape([spearman(preferences, points_NK) for points_NK in points_DNK], (-1, num_objectives))

    return {
        "mip": _interval([mean_inner_product(preferences, points_NK) for points_NK in points_DNK]),
        "hypervolume": _interval([hypervolume(points_NK, reference) for points_NK in points_DNK]),
        "crd": _interval(np.linalg.det(covariance_DNKK).mean(axis=1)),
        "steering_gap": _interval([steering_gap(preferences, points_NK) for points_NK in points_DNK]),
        "spearman": [_interval(drawn_D) for drawn_D in correlation_DK.T],
    }


def _interval(drawn: Any) -> Interval:
    drawn_D = np.asarray(drawn, dtype=np.float64)
    if not len(drawn_D):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn_D, (0.025, 0.975))
    return float(low), float(high)
