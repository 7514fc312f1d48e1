"""From prompts to generation requests, and from scored responses to preference pairs.

Everything here is a pure function of (recipe, seed, step): no actor, no state, so a step can be made again.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actors.types import GenerationRequest, Rollout
from learner.methods import METHODS
from learner.types import PairBatch, PreferencePair
from orchestrator.data import PromptStream
from rewards.normalize import Normalizer
from rewards.preferences import quantize, sample_preference_pairs

if TYPE_CHECKING:
    from orchestrator.config import Recipe


class Renders(Protocol):
    """What writes w into a prompt: `rewards.preferences.PromptRenderer`."""

    def token_ids(self, prompt: str, preference: Sequence[float]) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBatch:
    """What one optimizer step asks the rollout actors for.

    Example: RequestBatch(step=0, requests=(GenerationRequest(...),), preference_neg=array([[[0.2, 0.8]]]))
    """

    step: int
    requests: tuple[GenerationRequest, ...]  # [B], each carries w+
    preference_neg: np.ndarray  # [B, M, K], w-


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Rollouts of one request batch with all K scores of every response.

    Example: ScoredBatch(batch=..., rollouts=(Rollout(...),), scores=zeros([B, N, K]), seconds={"generate": 0.4})
    """

    batch: RequestBatch
    rollouts: tuple[Rollout, ...]  # [B], in request order
    scores: np.ndarray  # [B, N, K] raw scores, NaN where a judge gave none
    seconds: dict[str, float]

    @property
    def min_policy_version(self) -> int:
        return min(rollout.min_policy_version for rollout in self.rollouts)

    @property
    def generated_tokens(self) -> int:
        return sum(len(response.token_ids) for rollout in self.rollouts for response in rollout.responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """Example: PairStatistics(dropped=0, conflict_rate=0.8, tie_rate=0.1)"""

    dropped: int  # prompts without all N x K finite scores
    conflict_rate: float  # prompts on which two objectives prefer different responses
    tie_rate: float  # prompts on which every objective ties: they have no gradient in the alignment loss


def derive_seed(*parts: object) -> int:
    """Positive 63-bit seed; hashing keeps neighbouring requests from sharing random streams."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Batcher:
    """The training side of the data flow: requests for a step, pairs from their scored responses.

    Args:
        skipped: steps that give no pairs, because their update is known to be poisoned.
    """

    def __init__(
        self,
        recipe: "Recipe",
        prompts: Sequence[str],
        renderer: Renders,
        normalizer: Normalizer,
        *,
        skipped: Collection[int] = (),
    ) -> None:
        self.recipe = recipe
        self.method = METHODS[recipe.method]
        self.normalizer = normalizer
        self.prompts = prompts
        self.renderer = renderer
        self.skipped = skipped
        self.stream = PromptStream(len(prompts), batch_size=recipe.loop.prompts_per_step, seed=recipe.seed)

    def requests(self, step: int) -> RequestBatch:
        recipe = self.recipe
        preference_pos, preference_neg = sample_preference_pairs(
            np.random.default_rng([recipe.seed, step, 1]),
            recipe.loop.prompts_per_step,
            recipe.num_objectives,
            alpha=recipe.preferences.alpha,
            decimals=recipe.preferences.decimals,
            negatives=recipe.preferences.negatives,
            min_distance=recipe.preferences.min_distance,
        )
        if recipe.preferences.fixed is not None:
            preference_pos = np.tile(
                quantize(recipe.preferences.fixed, recipe.preferences.decimals), (len(preference_pos), 1)
            )
        return self.request_batch(step, self.renderer, preference_pos, preference_neg)

    def request_batch(
        self, step: int, renderer: Renders, preference_pos: np.ndarray, preference_neg: np.ndarray
    ) -> RequestBatch:
        """The step's prompts under these numbers [B, K] and [B, M, K], written by this renderer."""
        recipe = self.recipe
        requests = tuple(
            make_request(
                renderer,
                prompt=self.prompts[index],
                preference=preference_pos[row],
                num_responses=recipe.loop.responses_per_prompt,
                seed_parts=(recipe.seed, "train", step, row),
            )
            for row, index in enumerate(self.stream.batch(step))
        )
        return RequestBatch(step=step, requests=requests, preference_neg=preference_neg)

    def pairs(self, scored: ScoredBatch) -> tuple[PairBatch, PairStatistics]:
        """Prompts with a missing or non-finite score are dropped and counted, never scored as zero."""
        import torch

        if scored.batch.step in self.skipped:
            return PairBatch(step=scored.batch.step, pairs=()), pair_statistics(scored.scores)
        complete = np.isfinite(scored.scores).all(axis=(1, 2))
        kept = np.flatnonzero(complete)
        preference = torch.tensor([scored.rollouts[i].request.preference for i in kept], dtype=torch.float64)
        preference = preference.reshape(len(kept), self.recipe.num_objectives)
        normalized = torch.from_numpy(self.normalizer.apply(scored.scores[kept]))
        chosen = self.method.choose_pairs(
            normalized,
            preference,
            self.recipe.learner,
            seed=derive_seed(self.recipe.seed, "route", scored.batch.step),
        )
        counts = chosen.prompt.bincount(minlength=len(kept)).tolist()
        pairs = tuple(
            PreferencePair(
                prompt_ids_pos=scored.rollouts[kept[row]].request.prompt_ids,
                prompt_ids_neg=self._negative_prompts(scored, kept[row]),
                response_ids=tuple(scored.rollouts[kept[row]].responses[j].token_ids for j in responses),
                weight_y1=weight_y1,
                weight_y2=weight_y2,
                prompt_share=1 / counts[row],
            )
            for row, responses, weight_y1, weight_y2 in zip(
                chosen.prompt.tolist(),
                chosen.responses.tolist(),
                chosen.weight_y1.tolist(),
                chosen.weight_y2.tolist(),
                strict=True,
            )
        )
        return PairBatch(step=scored.batch.step, pairs=pairs), pair_statistics(scored.scores)

    def _negative_prompts(self, scored: ScoredBatch, index: int) -> tuple[tuple[int, ...], ...]:
        prompt = scored.rollouts[index].request.prompt
        return tuple(tuple(self.renderer.token_ids(prompt, w)) for w in scored.batch.preference_neg[index])


def pair_statistics(scores: np.ndarray) -> PairStatistics:
    """Of a batch's raw scores [B, N, K], NaN where a judge gave none."""
    import torch

    from learner.pairs import all_tie, objectives_conflict

    complete = np.isfinite(scores).all(axis=(1, 2))
    kept = torch.from_numpy(scores[complete])
    return PairStatistics(
        dropped=int((~complete).sum()),
        conflict_rate=float(objectives_conflict(kept).double().mean()) if len(kept) else float("nan"),
        tie_rate=float(all_tie(kept).double().mean()) if len(kept) else float("nan"),
    )


def make_request(
    renderer: Renders,
    *,
    prompt: str,
    preference: Sequence[float] | np.ndarray,
    num_responses: int,
    seed_parts: tuple[object, ...],
) -> GenerationRequest:
    """One request whose id and seed both come from `seed_parts`: the same parts always give the same tokens."""
    weights = tuple(float(weight) for weight in preference)
    return GenerationRequest(
        request_id="-".join(map(str, seed_parts)),
        prompt=prompt,
        prompt_ids=tuple(renderer.token_ids(prompt, weights)),
        preference=weights,
        num_responses=num_responses,
        seed=derive_seed(*seed_parts),
    )
