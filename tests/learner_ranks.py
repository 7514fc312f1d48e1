"""Learner engines for tests: made-up batches, and DeepSpeed ranks as spawned processes without Ray."""

import itertools
import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from learner.examples import Batch, Example, Ids
from learner.methods import METHODS, MethodSection
from learner.methods.mo_odpo import PairTargets

SPAWN_TIMEOUT_S = 240.0


def method(name: str = "mi-epo", **settings: Any) -> MethodSection:
    """A recipe's `method` section."""
    return METHODS[name].Config.model_validate(settings)


def pair_example(
    prompts: tuple[Ids, ...], responses: tuple[Ids, Ids], weights: tuple[float, float] = (0.7, 0.3)
) -> Example[PairTargets]:
    """One pair of responses under w+ and the w-; a1 is what the first of two objectives adds, a2 the second."""
    targets = PairTargets(responses=((0, 1),), weight=np.array([np.diag(weights)]))
    return Example(prompts=prompts, responses=responses, targets=targets, preference=(0.5, 0.5))


def weights_of_pair(example: Example[PairTargets]) -> tuple[float, float]:
    """(a1, a2)"""
    weight_y1, weight_y2 = example.targets.weight.sum(axis=(0, 1)).tolist()
    return weight_y1, weight_y2


def distinct_tokens(batch: Batch) -> int:
    """Tokens of a batch that any model must compute: in each example, every beginning of a sequence once."""
    return sum(
        len({(*prompt, *response)[:n] for prompt, response in passes for n in range(1, len(prompt) + len(response))})
        for passes in (itertools.product(each.prompts, each.responses) for each in batch.examples)
    )


def make_batch(step: int, num_pairs: int, *, vocab: int = 100, seed: int = 0, negatives: int = 1) -> Batch:
    """Random pairs of uneven lengths, some with ties (a1 + a2 < 1)."""
    rng = random.Random(f"{seed}/{step}")

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(20, vocab) for _ in range(rng.randint(low, high)))

    return Batch(
        step=step,
        examples=tuple(
            pair_example(
                tuple(tokens(2, 6) for _ in range(1 + negatives)),
                (tokens(1, 9), tokens(1, 9)),
                (rng.choice([0.0, 0.3, 0.7]), rng.choice([0.0, 0.3])),
            )
            for _ in range(num_pairs)
        ),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(rank, *arguments)` in `ranks` fresh processes that form one group; results in rank order."""
    context = multiprocessing.get_context("spawn")
    port = free_port()
    results = context.Queue()
    processes = [
        context.Process(target=_run_rank, args=(rank, ranks, port, results, work, arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        replies = dict(results.get(timeout=SPAWN_TIMEOUT_S) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    failures = [f"rank {rank}: {reply}" for rank, reply in sorted(replies.items()) if isinstance(reply, str)]
    assert not failures, "\n".join(failures)
    return [replies[rank] for rank in range(ranks)]


def _run_rank(rank: int, ranks: int, port: int, results: Any, work: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(rank_environment(rank, ranks, port))
    try:
        results.put((rank, work(rank, *arguments)))
    except BaseException:
        import traceback

        results.put((rank, traceback.format_exc()))
