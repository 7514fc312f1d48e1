"""Work in a process of its own: what it has loaded is gone when it ends, and it sees one GPU at most."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from orchestrator.errors import BadInput, RunFailed
from orchestrator.tasks.fitting.devices import leave_one_gpu

Progress = Callable[[str], None]
T = TypeVar("T")


def run_apart(
    work: Callable[..., T], progress: Progress, *arguments: object, silence_s: float = 3600.0, **named: object
) -> T:
    """`work(progress, *arguments, **named)` in a spawned process; everything that crosses must be picklable.

    Args:
        work: a function of a module. It may raise BadInput and RunFailed, which are raised here too.
        progress: receives here the lines that the work tells there.
        silence_s: longest wait for a line or the end.

    Raises:
        RunFailed: the process ended before its work, which it then tells on stderr, or told nothing for too long.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, arguments, named), name=work.__name__)
    process.start()
    theirs.close()
    try:
        while mine.poll(silence_s):
            kind, told = mine.recv()
            if kind == "done":
                result: T = told
                return result
            if kind == "failed":
                raise told
            progress(told)
        raise RunFailed(f"{_of(work)} told nothing for {silence_s:g} s")
    except EOFError:
        raise RunFailed(f"{_of(work)} ended before its work was done") from None
    finally:
        process.kill()
        process.join()


def _of(work: Callable[..., object]) -> str:
    return f"the process of {work.__module__}.{work.__name__}"


def _work(
    pipe: Connection, work: Callable[..., object], arguments: tuple[object, ...], named: dict[str, object]
) -> None:
    leave_one_gpu(os.environ)
    try:
        pipe.send(("done", work(lambda line: pipe.send(("line", line)), *arguments, **named)))
    except (BadInput, RunFailed) as error:
        pipe.send(("failed", error))
