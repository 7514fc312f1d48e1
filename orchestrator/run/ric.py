"""Rewards-in-Context instead of the loop: collect responses, imitate them under what they scored; twice.

Samples as many responses as any other method. Consumes and records what `loop.train` does; a stopped run starts over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.types import LabelledBatch, LabelledPair
from orchestrator.config import LoopConfig
from orchestrator.errors import RunFailed
from orchestrator.plan import load_tokenizer
from orchestrator.run.batching import RequestBatch, ScoredBatch, pair_statistics
from rewards.targets import LevelRenderer, LevelScale, TargetRenderer, keep_high, sample_target_levels

ONLINE_QUANTILE = 0.7
"""A response to a high target is imitated when it is above this level in some objective (RiC's rule)."""
OFFLINE_SHARE = 1 / 3
"""Of the responses imitated online: offline ones that pass the same rule, so that what was learned stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A response to imitate. Example: Row(prompt_ids=(1, 17, 4), response_ids=(5, 2), levels=(0.9, 0.2))"""

    prompt_ids: tuple[int, ...]  # of the prompt that asks for the levels
    response_ids: tuple[int, ...]
    levels: tuple[float, ...]  # [K]


def train(
    run: Any,
    config: LoopConfig,
    *,
    first_step: int,
    policy_version: int,
    evaluate_every: int,
    restored: Sequence[Any] = (),
) -> int:
    """As `loop.train`, but it makes no checkpoints: `first_step` is 0 and nothing was restored.

    Raises:
        RunFailed: no response has all scores.
    """
    recipe = run.recipe
    preferences, tokenizer = recipe.preferences, load_tokenizer(recipe.policy.model)
    parts = (preferences.conditioning, recipe.objective_names, preferences.decimals, tokenizer)
    writer = LevelRenderer(*parts)
    half = config.steps // 2
    stages = (range(half), range(half, config.steps))

    offline = _collect(run, [run.batcher.requests(step) for step in stages[0]], policy_version)
    scale = LevelScale(_finite_scores(offline))
    rows = annotate(offline, scale, writer)
    done = _imitate(run, rows, stages[0], offline, policy_version)
    run.evaluator.renderer = TargetRenderer(*parts)  # from here on a user's w asks for levels
    if done < half:
        return done
    policy_version += 1
    run.fleet.push_weights(policy_version)
    if evaluate_every:
        run.evaluate(half, policy_version)

    online = _collect(run, [target_requests(run, writer, step) for step in stages[1]], policy_version)
    rng = np.random.default_rng([recipe.seed, 31])
    kept = online_rows(annotate(online, scale, writer), rows, rng)
    done = _imitate(run, kept, stages[1], online, policy_version)
    policy_version += 1
    run.fleet.push_weights(policy_version)
    run.recorder.policy_version = policy_version
    return done


def target_requests(run: Any, writer: LevelRenderer, step: int) -> RequestBatch:
    """Requests of one step under high targets; `preference` of a request holds its levels."""
    recipe = run.recipe
    levels = sample_target_levels(
        np.random.default_rng([recipe.seed, step, 2]), recipe.loop.prompts_per_step, recipe.num_objectives
    )
    return run.batcher.request_batch(step, writer, levels, levels[:, None])


def annotate(scored: Sequence[ScoredBatch], scale: LevelScale, writer: LevelRenderer) -> list[Row]:
    """Every response that has all its scores, under a prompt that asks for exactly what it scored."""
    rows = []
    for batch in scored:
        for rollout, scores in zip(batch.rollouts, batch.scores, strict=True):
            for response, scores_K in zip(rollout.responses, scores, strict=True):
                if np.isfinite(scores_K).all() and response.token_ids:
                    levels = tuple(scale.levels(scores_K).tolist())
                    prompt_ids = tuple(writer.token_ids(rollout.request.prompt, levels))
                    rows.append(Row(prompt_ids=prompt_ids, response_ids=response.token_ids, levels=levels))
    return rows


def online_rows(online: Sequence[Row], offline: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """The high ones of both, a third of them (or as many as there are) offline ones.

    Raises:
        RunFailed: none is high.
    """
    high, old = ([row for row in rows if keep_high(row.levels, quantile=ONLINE_QUANTILE)] for rows in (online, offline))
    count = min(len(old), round(len(high) * OFFLINE_SHARE / (1 - OFFLINE_SHARE)))
    mixed = [*high, *(old[index] for index in rng.permutation(len(old))[:count])]
    if not mixed:
        raise RunFailed(f"method ric: no response reaches level {ONLINE_QUANTILE} in any objective")
    return mixed


def labelled_batches(
    rows: Sequence[Row], *, steps: int, pairs: int, rng: np.random.Generator
) -> list[list[LabelledPair]]:
    """[steps] lists of `pairs` pairs: shuffled epochs over the rows, two by two."""
    needed = 2 * pairs * steps
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-needed // len(rows)))])[:needed]
    dealt = [rows[index] for index in order]
    labelled = [
        LabelledPair(prompt_ids=(a.prompt_ids, b.prompt_ids), response_ids=(a.response_ids, b.response_ids))
        for a, b in zip(dealt[::2], dealt[1::2], strict=True)
    ]
    return [labelled[step * pairs : (step + 1) * pairs] for step in range(steps)]


def _collect(run: Any, batches: Sequence[RequestBatch], policy_version: int) -> list[ScoredBatch]:
    with run.recorder.stage("idle_learner"):
        return [run.sampler.submit(batch, policy_version).result() for batch in batches]


def _finite_scores(scored: Sequence[ScoredBatch]) -> np.ndarray:
    """[N, K]. Raises RunFailed when no response has all scores."""
    scores = np.concatenate([batch.scores.reshape(-1, batch.scores.shape[-1]) for batch in scored])
    scores = scores[np.isfinite(scores).all(axis=1)]
    if not len(scores):
        raise RunFailed("method ric: no response has a score on every objective")
    return scores


def _imitate(run: Any, rows: Sequence[Row], steps: range, scored: Sequence[ScoredBatch], policy_version: int) -> int:
    """One optimizer step for each collected batch; returns the step after the last one done."""
    if not rows:
        raise RunFailed("method ric: no response has a score on every objective")
    pairs: int = run.recipe.loop.prompts_per_step
    rng = np.random.default_rng([run.recipe.seed, 30, steps.start])
    batches = labelled_batches(rows, steps=len(steps), pairs=pairs, rng=rng)
    for step, batch, batch_scored in zip(steps, batches, scored, strict=True):
        with run.recorder.stage("learn"):
            report: Any = run.learner.update(LabelledBatch(step=step, pairs=tuple(batch)))
        statistics = pair_statistics(batch_scored.scores)
        run.recorder.step(step, policy_version, batch_scored, statistics, report, None, step - steps.start)
        if run.stop_requested():
            return step + 1
    return steps.stop
