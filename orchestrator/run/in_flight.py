"""Batches that were sampled but not yet trained on when a checkpoint was made, as JSON.

They were made by an older policy version than the checkpoint holds, so they cannot be sampled again. Their requests
can be made again: a request batch is a function of (recipe, seed, step).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.types import Response, Rollout
from orchestrator.recipes import read_record
from orchestrator.run.batching import RequestBatch, ScoredBatch
from rewards.section import Section

if TYPE_CHECKING:
    from concurrent.futures import Future

FILE_NAME = "in_flight.json"


class _Response(Section):
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    logprobs: tuple[float, ...]
    scores: tuple[float | None, ...]
    """[K], null where a judge gave none."""


class _Rollout(Section):
    responses: tuple[_Response, ...]
    min_policy_version: int
    max_policy_version: int


class _Batch(Section):
    step: int
    asked: str = ""
    """Digest of the requests that were answered."""
    rollouts: tuple[_Rollout, ...]
    seconds: dict[str, float]


class _File(Section):
    batches: tuple[_Batch, ...]


def save_in_flight(folder: Path, batches: Sequence[ScoredBatch]) -> None:
    file = _File(batches=tuple(_describe(batch) for batch in batches))
    (folder / FILE_NAME).write_text(file.model_dump_json() + "\n", encoding="utf-8")


def load_in_flight(folder: Path, requests: Callable[[int], RequestBatch]) -> "list[Future[ScoredBatch]]":
    """What `save_in_flight` saved, as results that are there already; `requests` makes a step's request batch again.

    Nothing where a step asks otherwise now, under a changed recipe or other prompts: it is then sampled anew.

    Raises:
        BadInput: the file is missing or damaged.
    """
    futures = []
    for described in read_record(_File, folder / FILE_NAME).batches:
        batch = requests(described.step)
        if described.asked != _digest(batch):
            return []
        futures.append(here_already(_restore(batch, described)))
    return futures


def here_already(batch: ScoredBatch) -> "Future[ScoredBatch]":
    """As what was submitted and is done."""
    from concurrent.futures import Future

    future: Future[ScoredBatch] = Future()
    future.set_result(batch)
    return future


def _describe(batch: ScoredBatch) -> _Batch:
    return _Batch(
        step=batch.batch.step,
        asked=_digest(batch.batch),
        rollouts=tuple(
            _Rollout(
                responses=tuple(
                    _Response(
                        token_ids=response.token_ids,
                        text=response.text,
                        finish_reason=response.finish_reason,
                        logprobs=response.logprobs,
                        scores=tuple(float(score) if np.isfinite(score) else None for score in scores_K),
                    )
                    for response, scores_K in zip(rollout.responses, scores_NK, strict=True)
                ),
                min_policy_version=rollout.min_policy_version,
                max_policy_version=rollout.max_policy_version,
            )
            for rollout, scores_NK in zip(batch.rollouts, batch.scores, strict=True)
        ),
        seconds=batch.seconds,
    )


def _digest(batch: RequestBatch) -> str:
    asked = [(request.prompt_ids, request.preference, request.num_responses) for request in batch.requests]
    return hashlib.blake2b(repr(asked).encode(), digest_size=8).hexdigest()


def _restore(batch: RequestBatch, described: _Batch) -> ScoredBatch:
    rollouts = tuple(
        Rollout(
            request=request,
            responses=tuple(Response(**response.model_dump(exclude={"scores"})) for response in rollout.responses),
            min_policy_version=rollout.min_policy_version,
            max_policy_version=rollout.max_policy_version,
        )
        for request, rollout in zip(batch.requests, described.rollouts, strict=True)
    )
    scores = [
        [[np.nan if score is None else score for score in response.scores] for response in rollout.responses]
        for rollout in described.rollouts
    ]
    return ScoredBatch(batch=batch, rollouts=rollouts, scores=np.array(scores, dtype=float), seconds=described.seconds)
