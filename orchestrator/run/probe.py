"""Whether the engines compute with the learner's weights: both give the same tokens their log-probabilities.

Checksums prove that bytes arrived; only this proves what an engine makes of them. On the same tokens the policy's
likeliest next tokens show whether it is being over-optimised.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actors.types import GenerationRequest
from orchestrator.errors import RunFailed
from orchestrator.run.sampling import Sampling
from orchestrator.run.stages import Ids, Probed, TokenLogprobs, TopTokens

if TYPE_CHECKING:
    from orchestrator.config import Recipe

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest mean difference, nats a token, that rounding explains; docs/precision.md has what was measured."""
PROMPTS = 4


class Probe:
    """Measures `Probed` on fresh responses.

    Args:
        requests: what to sample, always the same; the first `PROMPTS` are enough.
        learner_logprobs, top_tokens: of the policy in training.
    """

    def __init__(
        self,
        recipe: "Recipe",
        sampler: Sampling,
        learner_logprobs: TokenLogprobs,
        top_tokens: TopTokens,
        requests: Sequence[GenerationRequest],
    ) -> None:
        self._sampler = sampler
        self._learner_logprobs = learner_logprobs
        self._top_tokens = top_tokens
        self._requests = requests[:PROMPTS]
        self._every = recipe.loop.probe_every
        self._tolerance = tolerance(recipe)

    def is_due(self, policy_version: int, *, last: bool = False) -> bool:
        """After the first update, which the engines could lose, after every `loop.probe_every`, and after the last."""
        return self._every > 0 and (policy_version == 1 or last or policy_version % self._every == 0)

    def __call__(self, policy_version: int) -> Probed:
        """Samples, and asks the learner.

        Raises:
            RunFailed: engines and learner differ by more than rounding explains.
        """
        scored = self._sampler.sample(self._requests, policy_version, judges=())
        answered = [(rollout, response) for rollout in scored.rollouts for response in rollout.responses]
        prompts = [rollout.request.prompt_ids for rollout, _ in answered]
        responses = [response.token_ids for _, response in answered]
        found = self._learner_logprobs(prompts, responses)
        mismatch = engine_mismatch([response.logprobs for _, response in answered], found)
        if not mismatch <= self._tolerance:
            raise RunFailed(
                f"rollout engines and learner disagree on the same tokens by {mismatch:.4f} nats a token at policy "
                f"version {policy_version} (allowed {self._tolerance:g}): the engines do not compute with the weights "
                "that they were sent"
            )
        lengths = [len(response) for response in responses]
        entropy, mass = np.average(self._top_tokens(prompts, responses), axis=0, weights=lengths).tolist()
        return Probed(engine_mismatch=mismatch, top_entropy=entropy, top_mass=mass)


def policy_and_start(
    logprobs: TokenLogprobs, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]
) -> tuple[np.ndarray, np.ndarray]:
    """(log pi(y|x), log pi_start(y|x)) of every response [N], by the learner alone; equal before the first update."""
    policy, start = logprobs(prompt_ids, response_ids), logprobs(prompt_ids, response_ids, reference=True)
    return np.array([sum(tokens) for tokens in policy]), np.array([sum(tokens) for tokens in start])


def engine_mismatch(engine_T: Sequence[Sequence[float]], learner_T: Sequence[Sequence[float]]) -> float:
    """Mean over all tokens of |log pi_engine - log pi_learner|, nats; 0 where there is no token.

    Args:
        engine_T: of each response, the log-probability of each of its tokens, as it was sampled.
        learner_T: the same tokens, as the learner finds them.
    """
    pairs = [pair for sides in zip(engine_T, learner_T, strict=True) for pair in zip(*sides, strict=True)]
    return float(np.mean([abs(engine - learner) for engine, learner in pairs])) if pairs else 0.0


def tolerance(recipe: "Recipe") -> float:
    """That of the coarser of the two sides; `dtype: auto` is bfloat16 on a GPU."""
    sides = (recipe.learner, recipe.rollout)
    coarse = any(side.dtype == "bfloat16" or (side.dtype == "auto" and side.num_gpus > 0) for side in sides)
    return TOLERANCE["bfloat16" if coarse else "float32"]
