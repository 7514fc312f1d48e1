"""Learner engines for tests: made-up batches, and DeepSpeed ranks as spawned processes without Ray."""

import multiprocessing
import os
import random
import socket
from collections.abc import Callable
from typing import Any

from learner.types import PairBatch, PreferencePair

SPAWN_TIMEOUT_S = 240.0


def make_batch(step: int, num_pairs: int, *, vocab: int = 100, seed: int = 0, negatives: int = 1) -> PairBatch:
    """Random pairs of uneven lengths, some with ties (a1 + a2 < 1)."""
    rng = random.Random(f"{seed}/{step}")

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(20, vocab) for _ in range(rng.randint(low, high)))

    return PairBatch(
        step=step,
        pairs=tuple(
            PreferencePair(
                prompt_ids_pos=tokens(2, 6),
                prompt_ids_neg=tuple(tokens(2, 6) for _ in range(negatives)),
                response_ids=(tokens(1, 9), tokens(1, 9)),
                weight_y1=rng.choice([0.0, 0.3, 0.7]),
                weight_y2=rng.choice([0.0, 0.3]),
            )
            for _ in range(num_pairs)
        ),
    )


def share(batch: PairBatch, rank: int, ranks: int) -> PairBatch:
    return PairBatch(step=batch.step, pairs=batch.pairs[rank::ranks])


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
