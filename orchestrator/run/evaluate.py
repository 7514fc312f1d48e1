"""How well the policy follows w: the preference grid on held-out prompts, and the normaliser it is measured in.

Every evaluation asks the same prompts under the same vectors with the same seeds, so two evaluations differ only by
the policy.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.reward import Judge
from actors.types import Rollout
from orchestrator.data import spread
from orchestrator.errors import RunFailed
from orchestrator.pace import Pace
from orchestrator.run.batching import Renders, make_request
from orchestrator.run.sampling import Sampling
from rewards.bootstrap import prompt_intervals
from rewards.normalize import Normalizer
from rewards.pareto import (
    conditional_covariance,
    conditional_reward_dispersion,
    hypervolume,
    information_nats,
    kendall_tau,
    mean_inner_product,
    neighbour_overlap,
    sparsity,
    spearman,
    steering_gap,
)
from rewards.prompts import Prompt
from rewards.scorers import load_function
from rewards.simplex import evaluation_grid

if TYPE_CHECKING:
    from orchestrator.config import Recipe

TokenIds = tuple[int, ...]
PolicyAndStart = Callable[[list[TokenIds], list[TokenIds]], tuple[np.ndarray, np.ndarray]]
CLOUD_POINTS = 64
"""Responses per vector kept for the scatter behind the Pareto front."""
EXAMPLE_PROMPTS = EXAMPLE_VECTORS = 5
"""Answers kept word for word, so that a reader sees what w does to them."""


def measure_normalizers(
    recipe: "Recipe", sampler: Sampling, renderer: Renders, prompts: Sequence[Prompt], policy_version: int
) -> dict[Judge, Normalizer]:
    """Mean and standard deviation per objective of the starting policy on training prompts, w uniform on the simplex.

    Raises RunFailed when an objective has no finite score or no spread.
    """
    chosen = spread(prompts, recipe.evaluate.normalizer_prompts)
    preferences = np.random.default_rng([recipe.seed, 2]).dirichlet(np.ones(recipe.num_objectives), size=len(chosen))
    requests = [
        make_request(
            renderer, prompt=prompt, preference=w, num_responses=2, seed_parts=(recipe.seed, "normalizer", index)
        )
        for index, (prompt, w) in enumerate(zip(chosen, preferences, strict=True))
    ]
    judges = _judges(recipe)
    scored = sampler.sample(requests, policy_version, judges=judges)
    return {judge: _fit(recipe, judge, scored.scores[judge].reshape(-1, recipe.num_objectives)) for judge in judges}


def _fit(recipe: "Recipe", judge: Judge, scores: np.ndarray) -> Normalizer:
    for k, name in enumerate(recipe.objective_names):
        if not np.isfinite(scores[:, k]).any():
            raise RunFailed(
                f"objective {name!r}: its {judge} scorer gave no finite score for any of {len(scores)} responses "
                f"of the starting policy; check its model and template on one prompt by hand"
            )
    try:
        return Normalizer.fit(recipe.objective_names, scores)
    except ValueError as error:
        raise RunFailed(f"normaliser of the {judge} scores: {error}") from None


class Evaluator:
    """One evaluation = one record of RUN/evaluations.jsonl.

    Args:
        prompts: held-out prompts [P]; `recipe.evaluate.prompts` of them, evenly spaced, are used.
        renderer: writes w as the policy at hand reads it; at step 0 of a training run that is the start.
        asked: the same of the policy in training, from step 1 on; None: the same.
        normalizers: per judge, measured on the starting policy and frozen.
        policy_and_start: (prompt_ids, response_ids) -> (log pi, log pi_start) of every response. Both by one
            implementation: what engine and learner differ by on the same weights is no distance. Without it the
            distance to the start is left out.
        say: told how far it is, where it takes its time.
    """

    def __init__(
        self,
        recipe: "Recipe",
        sampler: Sampling,
        renderer: Renders,
        prompts: Sequence[Prompt],
        normalizers: dict[Judge, Normalizer],
        *,
        asked: Renders | None = None,
        policy_and_start: PolicyAndStart | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.sampler = sampler
        self.renderer = renderer
        self.asked = asked or renderer
        self.prompts = spread(prompts, recipe.evaluate.prompts)
        self.normalizers = normalizers
        self.policy_and_start = policy_and_start
        self.say = say
        self.preferences = evaluation_grid(recipe.num_objectives)  # [N, K]

    def __call__(self, step: int, policy_version: int) -> dict[str, Any]:
        started = time.monotonic()
        renderer = self.asked if step else self.renderer
        recipe, samples = self.recipe, self.recipe.evaluate.samples
        requests = [
            make_request(
                renderer,
                prompt=prompt,
                preference=w,
                num_responses=samples,
                seed_parts=(recipe.seed, "evaluate", n, p),
            )
            for n, w in enumerate(self.preferences)
            for p, prompt in enumerate(self.prompts)
        ]
        with contextlib.closing(self._pace(len(requests))) as pace:
            scored = self.sampler.sample(
                requests, policy_version, judges=_judges(recipe), arrived=lambda count: pace.update(count * samples)
            )
        by_vector = (len(self.preferences), len(self.prompts) * samples, recipe.num_objectives)
        normalized = {
            judge: self.normalizers[judge].apply(scores).reshape(by_vector) for judge, scores in scored.scores.items()
        }  # [N, P * samples, K]
        rewards = normalized["reward"]
        lengths = [len(response.token_ids) for rollout in scored.rollouts for response in rollout.responses]
        return {
            "step": step,
            "policy_version": policy_version,
            "objectives": list(recipe.objective_names),
            "preferences": self.preferences.tolist(),
            **front_metrics(self.preferences, rewards, recipe.reference_point),
            "prompt_intervals": self._prompt_intervals(rewards, samples),
            "identification_accuracy": self._identification_accuracy(scored.rollouts, renderer),
            "information_nats": self._information(scored.rollouts, renderer),
            **self._distance_to_start(scored.rollouts),
            "samples": samples,
            "distinct_responses": _distinct_responses(scored.rollouts),
            "response_length": float(np.mean(lengths)),
            "missing": int((~np.isfinite(scored.scores["reward"])).any(axis=-1).sum()),
            "reference_point": list(recipe.reference_point),
            "cloud": [spread(scores.tolist(), CLOUD_POINTS) for scores in rewards],
            "audit": self._audit(normalized, scored.rollouts),
            "attainable": self._attainable,
            "normalizer": self.normalizers["reward"].to_dict(),
            "examples": self._examples(scored.rollouts, rewards.reshape(*scored.scores["reward"].shape)),
            "seconds": time.monotonic() - started,
        }

    def _pace(self, requests: int) -> Pace:
        total = requests * self.recipe.evaluate.samples
        return Pace(say=self.say or (lambda line: None), what="evaluating", unit="responses", total=total)

    def _audit(self, normalized: dict[Judge, np.ndarray], rollouts: Sequence[Rollout]) -> dict[str, Any] | None:
        if "audit" not in normalized:
            return None
        prompts = [rollout.request.prompt.plain for rollout in rollouts for _ in rollout.responses]
        responses = [response.text for rollout in rollouts for response in rollout.responses]
        return {
            **front_metrics(self.preferences, normalized["audit"], self.recipe.reference_point),
            "prompt_intervals": self._prompt_intervals(normalized["audit"], self.recipe.evaluate.samples),
            "normalizer": self.normalizers["audit"].to_dict(),
            "extra": {
                name: float(load_function(path)(prompts, responses))
                for name, path in self.recipe.evaluate.audit_statistics.items()
            },
        }

    @cached_property
    def _attainable(self) -> dict[str, Any] | None:
        """The best any policy can do by the audit judge, where the task can tell."""
        if self.recipe.evaluate.attainable is None:
            return None
        normalizer = self.normalizers["audit"]
        points = load_function(self.recipe.evaluate.attainable)(
            [prompt.plain for prompt in self.prompts],
            self.preferences,
            np.asarray(normalizer.mean),
            np.asarray(normalizer.std),
            objectives=self.recipe.objective_names,
            max_new_tokens=self.recipe.rollout.max_new_tokens,
        )
        return {
            "judge": "audit",
            "points": np.asarray(points).tolist(),
            "mip": mean_inner_product(self.preferences, points),
            "hypervolume": hypervolume(points, self.recipe.reference_point),
        }

    def _identification_accuracy(self, rollouts: Sequence[Rollout], renderer: Renders) -> float | None:
        """Share of responses y ~ pi(.|x, w) with log pi(y|x, w) > log pi(y|x, w'), w' another vector of the grid.

        In [0, 1], higher is better, 0.5 is chance. It needs no reference model, so it also holds for the starting
        policy, whose log-ratios are all zero.
        """
        count = self.recipe.evaluate.identification_responses
        if not count or len(self.preferences) < 2:
            return None
        rng = np.random.default_rng([self.recipe.seed, 3])
        chosen = _answered(rollouts, count)
        others = []
        for rollout in chosen:
            distinct = self.preferences[np.abs(self.preferences - rollout.request.preference).max(axis=1) > 1e-9]
            others.append(tuple(renderer.token_ids(rollout.request.prompt, distinct[rng.integers(len(distinct))])))
        responses = [rollout.responses[0].token_ids for rollout in chosen]
        own = [rollout.request.prompt_ids for rollout in chosen]
        logprobs = self.sampler.logprobs([*own, *others], [*responses, *responses])
        return float((logprobs[: len(own)] > logprobs[len(own) :]).mean())

    def _prompt_intervals(self, rewards: np.ndarray, samples: int) -> dict[str, Any]:
        """For normalised rewards [N, P * samples, K]."""
        by_prompt = rewards.reshape(len(self.preferences), len(self.prompts), samples, -1)
        rng = np.random.default_rng([self.recipe.seed, 4])
        return dict(prompt_intervals(self.preferences, by_prompt, self.recipe.reference_point, rng=rng))

    def _information(self, rollouts: Sequence[Rollout], renderer: Renders) -> float | None:
        """`rewards.pareto.information_nats` over the vectors of the grid."""
        count = self.recipe.evaluate.information_responses
        if not count or len(self.preferences) < 2:
            return None
        chosen = _answered(rollouts, count)
        prompt_ids = [
            tuple(renderer.token_ids(rollout.request.prompt, w)) for rollout in chosen for w in self.preferences
        ]
        response_ids = [rollout.responses[0].token_ids for rollout in chosen for _ in self.preferences]
        logprobs = np.reshape(self.sampler.logprobs(prompt_ids, response_ids), (len(chosen), len(self.preferences)))
        asked = np.array([rollout.request.preference for rollout in chosen])
        return information_nats(logprobs, np.abs(asked[:, None] - self.preferences).sum(axis=-1).argmin(axis=1))

    def _distance_to_start(self, rollouts: Sequence[Rollout]) -> dict[str, float | None]:
        """How far sampled responses are from what the frozen start would say under the same w.

        kl_to_start: mean of log pi(y|x, w) - log pi_start(y|x, w), nats per response; lower is closer. An estimate of
        the KL divergence from policy to start, so it may fall a little below zero.
        start_logprob: log pi_start(y|x, w) per token. Text that the start would not write falls far below what the
        start gives its own.
        """
        if self.policy_and_start is None or not self.recipe.evaluate.identification_responses:
            return {"kl_to_start": None, "start_logprob": None}
        chosen = _answered(rollouts, self.recipe.evaluate.identification_responses)
        responses = [rollout.responses[0].token_ids for rollout in chosen]
        policy_N, start_N = self.policy_and_start([rollout.request.prompt_ids for rollout in chosen], responses)
        return {
            "kl_to_start": float(np.mean(policy_N - start_N)),
            "start_logprob": float(np.sum(start_N)) / sum(map(len, responses)),
        }

    def _examples(self, rollouts: Sequence[Rollout], rewards: np.ndarray) -> list[dict[str, Any]]:
        """Held-out prompts, each under vectors spread over the grid; rewards [N * P, samples, K]."""
        return [
            {
                "prompt": self.prompts[p].plain,
                "preference": self.preferences[n].tolist(),
                "response": rollouts[n * len(self.prompts) + p].responses[0].text,
                "scores": rewards[n * len(self.prompts) + p, 0].tolist(),
            }
            for p in spread(range(len(self.prompts)), EXAMPLE_PROMPTS)
            for n in spread(range(len(self.preferences)), EXAMPLE_VECTORS)
        ]


def _answered(rollouts: Sequence[Rollout], count: int) -> list[Rollout]:
    """`count` of the rollouts, evenly spread, whose first response has a token."""
    return spread([rollout for rollout in rollouts if rollout.responses[0].token_ids], count)


def _distinct_responses(rollouts: Sequence[Rollout]) -> float:
    """Share of different texts among the answers to one prompt under one vector, averaged; 1 is all different."""
    shares = [len({response.text for response in rollout.responses}) / len(rollout.responses) for rollout in rollouts]
    return float(np.mean(shares))


def front_metrics(preferences: np.ndarray, scores: np.ndarray, reference_point: Sequence[float]) -> dict[str, Any]:
    """Policy-front metrics of normalised scores [N, P, K]; responses with a missing score are left out of every figure.

    Raises:
        RunFailed: a vector has fewer than two fully scored responses, so it has no mean and no covariance.
    """
    kept = [rows[np.isfinite(rows).all(axis=1)] for rows in scores]
    for w, rows in zip(preferences, kept, strict=True):
        if len(rows) < 2:
            raise RunFailed(
                f"evaluation: only {len(rows)} fully scored responses under w = {w.round(3).tolist()}, need 2"
            )
    points = np.stack([rows.mean(axis=0) for rows in kept])  # [N, K]
    covariance = conditional_covariance(scores)  # [N, K, K]
    return {
        "points": points.tolist(),
        "covariance": covariance.tolist(),
        "hypervolume": hypervolume(points, reference_point),
        "mip": mean_inner_product(preferences, points),
        "crd": conditional_reward_dispersion(scores),
        "spearman": [float(value) for value in spearman(preferences, points)],
        "kendall": [float(value) for value in kendall_tau(preferences, points)],
        "steering_gap": steering_gap(preferences, points),
        "sparsity": sparsity(points),
        "neighbour_overlap": neighbour_overlap(preferences, points, covariance),
    }


def _judges(recipe: "Recipe") -> tuple[Judge, ...]:
    return ("reward", "audit") if recipe.has_audit else ("reward",)
