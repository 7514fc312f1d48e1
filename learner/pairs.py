"""From K scores of two responses to preference weights. Shapes: B pairs, K objectives, in recipe order.

A shared pair with per-objective winners is soft-label DPO: summing w_k times the DPO loss of objective k over the
objectives equals one DPO loss with label weights (a1, a2), so one pair of log-ratios serves all K objectives.
"""

import torch
from torch import Tensor


def pair_weights(scores: Tensor, preference: Tensor, *, min_margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """How much of the preference vector stands behind each response.

    Args:
        scores: float [B, 2, K], score of response j on objective k. Only the order within a pair matters.
        preference: float [B, K], w+; rows are non-negative and sum to 1.
        min_margin: difference of scores beyond which an objective has a winner; up to it, it ties.

    Returns:
        (a1 [B], a2 [B]) in the dtype of `preference`: a1 sums w+_k where s_1k > s_2k, a2 where s_2k > s_1k. A tied
        objective counts in neither, so a1 + a2 < 1 with ties and a1 = a2 = 0 when every objective ties.

    Raises:
        ValueError: shapes do not fit, or a score is not finite (drop such pairs first).
    """
    _check_scores(scores, preference)
    first_wins_BK, second_wins_BK = _winners(scores, min_margin)
    return (preference * first_wins_BK).sum(-1), (preference * second_wins_BK).sum(-1)


def scalarized_pair_weights(scores: Tensor, preference: Tensor, *, min_margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """All the weight to the response with the higher weighted score w . s (arXiv 2503.00295).

    Args:
        scores: float [B, 2, K], normalised: unlike in `pair_weights`, the objectives' scales matter.
        preference: float [B, K], w+.
        min_margin: as in `pair_weights`, for the weighted score.

    Returns:
        (a1 [B], a2 [B]) in the dtype of `preference`: (1, 0) or (0, 1), and (0, 0) where the weighted scores tie. At a
        one-hot w this is `pair_weights`.

    Raises:
        ValueError: as `pair_weights`.
    """
    _check_scores(scores, preference)
    utility_B2 = torch.einsum("bjk,bk->bj", scores.to(preference.dtype), preference)
    first_wins_B, second_wins_B = _winners(utility_B2, min_margin)
    return first_wins_B.to(preference.dtype), second_wins_B.to(preference.dtype)


def sample_routes(preference: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot [B, K] of an objective Z ~ w for each row of a preference [B, K]: its mean is the preference."""
    return torch.nn.functional.one_hot(
        torch.multinomial(preference, 1, generator=generator).squeeze(-1), preference.shape[1]
    ).to(preference.dtype)


def pair_conflict(scores: Tensor) -> Tensor:
    """bool [B]: some objective strictly prefers y1 and another strictly prefers y2. scores: float [B, 2, K]."""
    _check_scores(scores)
    first_wins_BK, second_wins_BK = _winners(scores)
    return first_wins_BK.any(-1) & second_wins_BK.any(-1)


def pair_tie(scores: Tensor) -> Tensor:
    """bool [B]: every objective ties, so the pair says nothing about alignment. scores: float [B, 2, K].

    The share of tied (pair, objective) cells is `(scores[:, 0] == scores[:, 1]).double().mean()`.
    """
    _check_scores(scores)
    return (scores[:, 0] == scores[:, 1]).all(-1)


def _winners(scores: Tensor, min_margin: float = 0.0) -> tuple[Tensor, Tensor]:
    difference = scores[:, 0] - scores[:, 1]
    return difference > min_margin, difference < -min_margin


def _check_scores(scores: Tensor, preference: Tensor | None = None) -> None:
    if scores.ndim != 3 or scores.shape[1] != 2:
        raise ValueError(f"scores must be [B, 2, K], got {list(scores.shape)}")
    finite = torch.isfinite(scores)
    if not finite.all():
        row, response, objective = (int(index) for index in (~finite).nonzero()[0])
        value = float(scores[row, response, objective])
        raise ValueError(f"scores[{row}, {response}, {objective}] must be finite, got {value}")
    if preference is not None and preference.shape != scores[:, 0].shape:
        raise ValueError(f"preference must be [B, K] = {list(scores[:, 0].shape)}, got {list(preference.shape)}")
