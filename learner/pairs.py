"""From K scores of two responses to preference weights. Shapes: B pairs, K objectives, in recipe order.

A shared pair with per-objective winners is soft-label DPO: summing w_k times the DPO loss of objective k over the
objectives equals one DPO loss with label weights (a1, a2), so one pair of log-ratios serves all K objectives.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPairs:
    """P pairs of responses to B prompts.

    Example: ChosenPairs(prompt=tensor([0, 0, 1]), responses=tensor([[0, 2], [1, 2], [0, 1]]), weight_y1=..., ...)
    """

    prompt: Tensor
    """int64 [P]: row of the prompt, ascending; every prompt has at least one pair."""
    responses: Tensor
    """int64 [P, 2]: which of the prompt's responses are y1 and y2, y1 < y2."""
    weight_y1: Tensor
    weight_y2: Tensor
    """float [P], a1 and a2."""


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
    _check_scores(scores, preference, of_pairs=True)
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
    _check_scores(scores, preference, of_pairs=True)
    utility_B2 = torch.einsum("bjk,bk->bj", scores.to(preference.dtype), preference)
    first_wins_B, second_wins_B = _winners(utility_B2, min_margin)
    return first_wins_B.to(preference.dtype), second_wins_B.to(preference.dtype)


def sample_routes(preference: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot [B, K] of an objective Z ~ w for each row of a preference [B, K]: its mean is the preference."""
    return torch.nn.functional.one_hot(
        torch.multinomial(preference, 1, generator=generator).squeeze(-1), preference.shape[1]
    ).to(preference.dtype)


def extreme_pairs(scores: Tensor, preference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per objective its best response against its worst; objectives that choose the same two share one pair.

    Args:
        scores: float [B, N, K] of N >= 2 responses to each of B prompts. With N = 2 there is one pair for each prompt.
        preference: float [B, K], w+; an objective of weight 0 chooses nothing.

    Returns:
        prompt: int64 [P], the row of each pair, ascending; every prompt has at least one (its first two responses when
            no objective can choose).
        responses: int64 [P, 2], the pair's y1 and y2, y1 < y2.
        preference: [P, K], w+ where the objective chose this pair (of equal extremes the first counts), else 0.
    """
    _check_scores(scores, preference)
    best_BK, worst_BK = scores.argmax(1), scores.argmin(1)
    first_BK, second_BK = torch.minimum(best_BK, worst_BK), torch.maximum(best_BK, worst_BK)
    chooses_BK = (best_BK != worst_BK) & (preference > 0)
    prompt, responses, masks = [], [], []
    for row in range(len(scores)):
        found: dict[tuple[int, int], list[bool]] = {}
        for k in chooses_BK[row].nonzero().flatten().tolist():
            pair = (int(first_BK[row, k]), int(second_BK[row, k]))
            found.setdefault(pair, [False] * scores.shape[2])[k] = True
        for pair, mask in (found or {(0, 1): [False] * scores.shape[2]}).items():
            prompt.append(row)
            responses.append(pair)
            masks.append(mask)
    prompt_P = torch.tensor(prompt, dtype=torch.int64)
    mask_PK = torch.tensor(masks, dtype=preference.dtype).reshape(-1, scores.shape[2])
    return prompt_P, torch.tensor(responses, dtype=torch.int64).reshape(-1, 2), preference[prompt_P] * mask_PK


def objectives_conflict(scores: Tensor) -> Tensor:
    """bool [B]: two objectives prefer different responses. scores: float [B, N, K]; ties prefer none."""
    _check_scores(scores)
    best_BK, tied_BK = scores.argmax(1), scores.amax(1) == scores.amin(1)
    lowest_B = best_BK.masked_fill(tied_BK, scores.shape[1]).amin(-1)
    return (lowest_B < best_BK.masked_fill(tied_BK, -1).amax(-1)) & ~tied_BK.all(-1)


def all_tie(scores: Tensor) -> Tensor:
    """bool [B]: every objective ties, so the responses say nothing about alignment. scores: float [B, N, K]."""
    _check_scores(scores)
    return (scores.amax(1) == scores.amin(1)).all(-1)


def _winners(scores: Tensor, min_margin: float = 0.0) -> tuple[Tensor, Tensor]:
    difference = scores[:, 0] - scores[:, 1]
    return difference > min_margin, difference < -min_margin


def _check_scores(scores: Tensor, preference: Tensor | None = None, *, of_pairs: bool = False) -> None:
    if scores.ndim != 3 or scores.shape[1] < 2:
        raise ValueError(f"scores must be [B, N, K] with N >= 2, got {list(scores.shape)}")
    if of_pairs and scores.shape[1] != 2:
        raise ValueError(f"scores must be [B, 2, K], got {list(scores.shape)}")
    finite = torch.isfinite(scores)
    if not finite.all():
        row, response, objective = (int(index) for index in (~finite).nonzero()[0])
        value = float(scores[row, response, objective])
        raise ValueError(f"scores[{row}, {response}, {objective}] must be finite, got {value}")
    if preference is not None and preference.shape != scores[:, 0].shape:
        raise ValueError(f"preference must be [B, K] = {list(scores[:, 0].shape)}, got {list(preference.shape)}")
