"""What a front is worth: metrics of a policy's mean scores over a grid of preference vectors. Larger scores are better.

Shapes: N preference vectors, P responses per vector, K objectives. ``points`` are mean normalised scores per vector
(the policy's front); ``scores`` are single responses. The two are never mixed in one metric.
A missing score is NaN: rows that hold one are left out, and a metric without any complete row is NaN.
"""

from typing import Any

import moocore
import numpy as np


def hypervolume(points: Any, reference: Any) -> float:
    """Volume of the union of the boxes [reference, point] over points [N, K], for a reference [K].

    Range [0, inf), larger is better. Points that are not above the reference in every objective add nothing.
    """
    points_NK, reference_K = _matrix(points, "points"), np.asarray(reference, dtype=np.float64)
    if reference_K.shape != points_NK.shape[1:] or not np.isfinite(reference_K).all():
        raise ValueError(f"reference must be {points_NK.shape[1]} finite numbers, got {reference_K.tolist()}")
    points_NK = points_NK[np.isfinite(points_NK).all(axis=1)]
    # Clipped rather than left to the library: points at or below the reference then add exactly zero volume.
    above_NK = points_NK[(points_NK > reference_K).all(axis=1)]
    if len(above_NK) == 0:
        return 0.0
    if above_NK.shape[1] == 1:
        return float((above_NK - reference_K).max())
    return float(moocore.hypervolume(above_NK, ref=reference_K, maximise=True))


def nondominated(points: Any) -> np.ndarray:
    """Which of points [N, K] no other point beats: bool [N].

    A point is dominated when another is at least as good everywhere and better somewhere. Equal points stand together;
    an incomplete point is never on the front.
    """
    points_NK = _matrix(points, "points")
    complete_N = np.isfinite(points_NK).all(axis=1)
    safe_NK = np.where(complete_N[:, None], points_NK, -np.inf)
    at_least_NN = (safe_NK[:, None, :] >= safe_NK[None, :, :]).all(axis=-1)
    better_NN = (safe_NK[:, None, :] > safe_NK[None, :, :]).any(axis=-1)
    return complete_N & ~(at_least_NN & better_NN).any(axis=0)


def mean_inner_product(preferences: Any, points: Any) -> float:
    """MIP = mean over n of w_n . s_n, for preferences [N, K] and points [N, K].

    Range (-inf, inf), larger is better: what users with those weights get, in their own measure. About 0 for the policy
    on which the normaliser was fitted.
    """
    preferences_NK, points_NK = _pair(preferences, points)
    products_N = (preferences_NK * points_NK).sum(axis=1)
    products_N = products_N[np.isfinite(products_N)]
    return float(products_N.mean()) if len(products_N) else float("nan")


def steering_gap(preferences: Any, points: Any) -> float:
    """Expected utility minus MIP: mean over n of (max over m of w_n . s_m) - w_n . s_n, for [N, K] and [N, K].

    Range [0, inf), smaller is better: 0 when no user would be better off under another user's weights. NaN with an
    incomplete point.
    """
    preferences_NK, points_NK = _pair(preferences, points)
    utility_NM = preferences_NK @ points_NK.T
    return float((utility_NM.max(axis=1) - np.diagonal(utility_NM)).mean())


def igd_plus(points: Any, front: Any) -> float:
    """IGD+ of points [N, K] to a reference front [R, K]: mean over r of min over n of ||max(r - s_n, 0)||.

    Range [0, inf), smaller is better: how far the points fall short of the front. Incomplete points are left out; NaN
    without a complete point.
    """
    points_NK, front_RK = _matrix(points, "points"), _matrix(front, "front")
    points_NK = points_NK[np.isfinite(points_NK).all(axis=1)]
    if not len(points_NK):
        return float("nan")
    return float(moocore.igd_plus(points_NK, ref=front_RK, maximise=True))


def sparsity(points: Any) -> float:
    """Mean squared step between neighbours on the front of points [N, K], summed over the objectives.

    1 / (F - 1) * sum over k, f of (s_k(f) - s_k(f + 1))^2 over the F nondominated points sorted by objective k. Range
    [0, inf), smaller is denser; 0 for a front of one point, so never read it without the hypervolume.
    """
    points_NK = _matrix(points, "points")
    front_FK = np.unique(points_NK[nondominated(points_NK)], axis=0)
    if len(front_FK) < 2:
        return 0.0
    return float((np.diff(np.sort(front_FK, axis=0), axis=0) ** 2).sum() / (len(front_FK) - 1))


def neighbour_overlap(preferences: Any, points: Any, covariance: Any) -> float:
    """How alike the rewards under neighbouring vectors are: mean Bhattacharyya coefficient of fitted normals.

    For preferences [N, K], mean scores [N, K] and their covariance [N, K, K]; a vector's neighbours are the nearest
    others. BC(a, b) = exp(-D), D = 1/8 m' S^-1 m + 1/2 log(det S / sqrt(det S_a det S_b)) with m the difference of the
    means and S = (S_a + S_b) / 2. Range [0, 1], smaller is better: 1 says that the weights make no difference.
    """
    preferences_NK, points_NK = _pair(preferences, points)
    # A response set without any spread in one direction has no density; a millionth of a deviation gives it one.
    covariance_NKK = np.asarray(covariance, dtype=np.float64) + 1e-12 * np.eye(points_NK.shape[1])
    distance_NN = np.abs(preferences_NK[:, None] - preferences_NK[None]).sum(axis=-1)
    np.fill_diagonal(distance_NN, np.inf)
    overlaps = []
    for n, m in np.argwhere(distance_NN <= distance_NN.min(axis=1, keepdims=True) + 1e-9):
        pooled_KK = (covariance_NKK[n] + covariance_NKK[m]) / 2
        shift_K = points_NK[n] - points_NK[m]
        log_dets = [np.linalg.slogdet(matrix)[1] for matrix in (pooled_KK, covariance_NKK[n], covariance_NKK[m])]
        distance = shift_K @ np.linalg.solve(pooled_KK, shift_K) / 8 + (log_dets[0] - sum(log_dets[1:]) / 2) / 2
        overlaps.append(np.exp(-distance))
    return float(np.mean(overlaps)) if overlaps else float("nan")


def conditional_reward_dispersion(scores: Any) -> float:
    """CRD = mean over n of det Cov_p(s_np), the K x K covariance (ddof 1) of the responses' scores [N, P, K].

    Range [0, inf), smaller is better: the weights say more about what a response will be worth. About 1 for
    uncorrelated objectives of the policy on which the normaliser was fitted. K = 1: the plain variance. Vectors with
    fewer than two complete responses are left out.
    """
    covariance_NKK = conditional_covariance(scores)
    measured_NKK = covariance_NKK[np.isfinite(covariance_NKK).all(axis=(1, 2))]
    return float(np.linalg.det(measured_NKK).mean()) if len(measured_NKK) else float("nan")


def conditional_covariance(scores: Any) -> np.ndarray:
    """Covariance (ddof 1) of scores [N, P, K] over the responses of each preference vector: [N, K, K].

    Incomplete responses are left out; a vector with fewer than two complete ones is NaN throughout.
    """
    scores_NPK = np.asarray(scores, dtype=np.float64)
    if scores_NPK.ndim != 3 or scores_NPK.shape[2] == 0:
        raise ValueError(f"scores must be [N, P, K], got shape {scores_NPK.shape}")
    count, _, k = scores_NPK.shape
    covariance_NKK = np.full((count, k, k), np.nan)
    for n, scores_PK in enumerate(scores_NPK):
        complete_PK = scores_PK[np.isfinite(scores_PK).all(axis=1)]
        if len(complete_PK) >= 2:
            covariance_NKK[n] = np.cov(complete_PK, rowvar=False, ddof=1).reshape(k, k)
    return covariance_NKK


def spearman(preferences: Any, points: Any) -> np.ndarray:
    """Rank correlation (ties get average ranks) between w_nk and s_nk over n, for each objective: [K].

    Range [-1, 1], larger is better: 1 says that more weight always brought more reward. 0 when the reward is the same
    at every vector; NaN when the weight is (K = 1), or with fewer than two complete vectors.
    """
    preferences_NK, points_NK = _pair(preferences, points)
    correlation_K = np.full(points_NK.shape[1], np.nan)
    for k in range(points_NK.shape[1]):
        complete_N = np.isfinite(points_NK[:, k])
        weight_ranks = _average_ranks(preferences_NK[complete_N, k])
        reward_ranks = _average_ranks(points_NK[complete_N, k])
        if len(weight_ranks) < 2 or np.ptp(weight_ranks) == 0:
            continue
        correlation_K[k] = 0.0 if np.ptp(reward_ranks) == 0 else np.corrcoef(weight_ranks, reward_ranks)[0, 1]
    return correlation_K


def kendall_tau(preferences: Any, points: Any) -> np.ndarray:
    """Kendall's tau-b between w_nk and s_nk over n, for each objective: [K].

    (concordant - discordant pairs) / sqrt(pairs untied in w * pairs untied in s). Range [-1, 1], larger is better;
    the same degenerate cases as `spearman`.
    """
    preferences_NK, points_NK = _pair(preferences, points)
    tau_K = np.full(points_NK.shape[1], np.nan)
    for k in range(points_NK.shape[1]):
        complete_N = np.isfinite(points_NK[:, k])
        upper = np.triu_indices(int(complete_N.sum()), 1)
        weight_signs, reward_signs = (
            np.sign(values[:, None] - values[None, :])[upper]
            for values in (preferences_NK[complete_N, k], points_NK[complete_N, k])
        )
        untied_weights, untied_rewards = np.abs(weight_signs).sum(), np.abs(reward_signs).sum()
        if untied_weights == 0:
            continue
        concordance = (weight_signs * reward_signs).sum()
        tau_K[k] = 0.0 if untied_rewards == 0 else concordance / np.sqrt(untied_weights * untied_rewards)
    return tau_K


def information_nats(logprobs: Any, own: Any) -> float:
    """InfoNCE estimate of I(Y; W | X) in nats from log pi(y_r | x_r, w_m) [R, M] and the index own [R] of y_r's w.

    mean over r of log pi(y_r | w_own) - log (1/M sum over m of pi(y_r | w_m)). At most log M, a lower bound of the
    information for W uniform over the M vectors; 0 when the weights make no difference. Larger is better.
    """
    logprobs_RM, own_R = _matrix(logprobs, "logprobs"), np.asarray(own)
    if own_R.shape != logprobs_RM.shape[:1]:
        raise ValueError(f"own must be [R] = [{len(logprobs_RM)}], got shape {own_R.shape}")
    highest_R = logprobs_RM.max(axis=1)
    mixture_R = highest_R + np.log(np.exp(logprobs_RM - highest_R[:, None]).mean(axis=1))
    return float((logprobs_RM[np.arange(len(own_R)), own_R] - mixture_R).mean())


def _average_ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group_N]


def _matrix(values: Any, name: str) -> np.ndarray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} must be [N, K], got shape {matrix.shape}")
    return matrix


def _pair(preferences: Any, points: Any) -> tuple[np.ndarray, np.ndarray]:
    preferences_NK, points_NK = _matrix(preferences, "preferences"), _matrix(points, "points")
    if preferences_NK.shape != points_NK.shape:
        raise ValueError(f"preferences {preferences_NK.shape} and points {points_NK.shape} must have one shape")
    return preferences_NK, points_NK
