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
    weight_y1, weight_y2 = objective_weights(scores, preference, min_margin=min_margin).sum(1).unbind(-1)
    return weight_y1, weight_y2


def objective_weights(scores: Tensor, preference: Tensor, *, min_margin: float = 0.0) -> Tensor:
    """What each objective adds to (a1, a2) of `pair_weights`, whose arguments and errors these are: [B, K, 2]."""
    _check_scores(scores, preference, of_pairs=True)
    difference_BK = scores[:, 0] - scores[:, 1]
    wins_BK2 = torch.stack([difference_BK > min_margin, difference_BK < -min_margin], -1)
    return preference[..., None] * wins_BK2


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
