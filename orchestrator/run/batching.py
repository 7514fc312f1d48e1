"""From prompts to generation requests, and from scored responses to the method's examples.

Everything here is a pure function of (recipe, seed, step): no actor, no state, so a step can be made again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from actors.types import GenerationRequest, Rollout
from learner.examples import Batch, Group
from learner.methods import make_method
from learner.types import StepReport
from orchestrator.data import PromptStream
from orchestrator.files import Record
from orchestrator.run.budget import KlBudget
from rewards.environment import derive_seed
from rewards.normalize import Normalizer
from rewards.preferences import PromptRenderer
from rewards.prompts import Prompt
from rewards.simplex import PreferenceSampler
from rewards.targets import LevelRenderer

if TYPE_CHECKING:
    from orchestrator.config import Recipe


class Renders(Protocol):
    """What writes w into a prompt: `rewards.preferences.PromptRenderer`."""

    def token_ids(self, prompt: Prompt, preference: Sequence[float]) -> Sequence[int]: ...


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
        return count_tokens(self.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """Example: PairStatistics(dropped=0, conflict_rate=0.8, tie_rate=0.1)"""

    dropped: int  # prompts with a missing score, whatever the method makes of the rest
    conflict_rate: float  # prompts on which two objectives prefer different responses
    tie_rate: float  # prompts on which every objective ties: they have no gradient in the alignment loss


def count_tokens(rollouts: Sequence[Rollout]) -> int:
    """Sampled in all of their responses."""
    return sum(len(response.token_ids) for rollout in rollouts for response in rollout.responses)


class Batcher:
    """The training side of the data flow: requests for a step, examples from their scored responses.

    Args:
        renderer: writes w into prompts.
        normalizer: what the method's scale of scores is relative to.
        skipped: steps that give no examples, because their update is known to be poisoned.
        records: lines of metrics.jsonl of the steps before, when a run goes on.
    """

    def __init__(
        self,
        recipe: "Recipe",
        prompts: Sequence[Prompt],
        renderer: PromptRenderer,
        normalizer: Normalizer,
        *,
        skipped: Collection[int] = (),
        records: Sequence[Record] = (),
    ) -> None:
        self.recipe = recipe
        self.method = make_method(recipe.method)
        self.budget = KlBudget(recipe.method, records)
        self.normalizer = normalizer
        self.prompts = prompts
        self.renderer = renderer
        self.levels_renderer = LevelRenderer.like(renderer)
        self.sampler = PreferenceSampler(recipe.preferences)
        self.skipped = skipped
        self.stream = PromptStream(len(prompts), batch_size=recipe.loop.prompts_per_step, seed=recipe.seed)

    def staleness(self, step: int) -> int:
        """Most versions between the policy that samples the step's batch and the one updated with it."""
        return self.method.staleness(step, self.recipe.loop.steps, self.recipe.loop.max_staleness)

    def requests(self, step: int) -> RequestBatch:
        """The step's prompts, each under a w+ (or the levels) of its own."""
        recipe = self.recipe
        sampler = self.method.sampler(step, recipe.loop.steps) or self.sampler
        renderer: Renders = self.levels_renderer if sampler.writes == "levels" else self.renderer
        preference_pos, preference_neg = sampler.draw(
            np.random.default_rng([recipe.seed, step, 1]), recipe.loop.prompts_per_step, recipe.num_objectives
        )
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

    def examples(self, scored: ScoredBatch) -> tuple[Batch, PairStatistics]:
        """A response with a missing or non-finite score is left out, never scored as zero.

        A prompt is dropped where fewer than the method needs remain.
        """
        step, groups = scored.batch.step, []
        if step not in self.skipped:
            seen = self.method.transform(scored.scores, self.normalizer)
            groups = [self._group(scored, row, seen[row]) for row in range(len(scored.rollouts))]
        usable = [group for group in groups if len(group.responses) >= self.method.min_responses]
        batch = Batch(step=step, examples=tuple(self.method.batch(usable)), anchor=self.budget.anchor)
        return batch, pair_statistics(scored.scores)

    def observe(self, report: StepReport) -> None:
        """What the step's update showed, which the next one may answer to."""
        self.budget.observe(report)

    def _group(self, scored: ScoredBatch, row: int, scores_NK: np.ndarray) -> Group:
        """The prompt with those of its responses that have every score."""
        request, responses = scored.rollouts[row].request, scored.rollouts[row].responses
        kept = [j for j in np.flatnonzero(np.isfinite(scores_NK).all(axis=1)) if responses[j].token_ids]
        others = scored.batch.preference_neg[row] if self.method.negatives else ()
        return Group(
            preference=np.array(request.preference),
            scores=scores_NK[kept],
            prompts=(request.prompt_ids, *(self._prompt(self.renderer, request.prompt, w) for w in others)),
            responses=tuple(responses[j].token_ids for j in kept),
            logprobs=tuple(responses[j].logprobs for j in kept),
            asking=partial(self._prompt, self.levels_renderer, request.prompt),
            seed=derive_seed(self.recipe.seed, "route", scored.batch.step, row),
            progress=scored.batch.step / self.recipe.loop.steps,
        )

    @staticmethod
    def _prompt(renderer: Renders, prompt: Prompt, numbers: Sequence[float]) -> tuple[int, ...]:
        return tuple(renderer.token_ids(prompt, numbers))


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
    prompt: Prompt,
    preference: Sequence[float] | np.ndarray,
    num_responses: int,
    seed_parts: tuple[object, ...],
) -> GenerationRequest:
    """One request whose id and seed both come from `seed_parts`: the same parts always give the same request."""
    weights = tuple(float(weight) for weight in preference)
    return GenerationRequest(
        request_id="-".join(map(str, seed_parts)),
        prompt=prompt,
        prompt_ids=tuple(renderer.token_ids(prompt, weights)),
        preference=weights,
        num_responses=num_responses,
        seed=derive_seed(*seed_parts),
    )
