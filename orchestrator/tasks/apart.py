"""Work in a process of its own: what it has loaded is gone when it ends, and it sees one GPU at most."""

import ctypes
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import BadInput, RunFailed
from orchestrator.tasks.fitting.devices import leave_one_gpu

Progress = Callable[[str], None]
T = TypeVar("T")
PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when the thread ends that started it."""


def run_apart(
    work: Callable[..., T], progress: Progress, *arguments: object, silence_s: float = 3600.0, **named: object
) -> T:
    """`work(progress, *arguments, **named)` in a spawned process; everything that crosses must be picklable.

    What libraries print there is kept in a file, and left there only where the process dies.

    Args:
        work: a function of a module. It may raise BadInput and RunFailed, which are raised here too.
        progress: receives here the lines that the work tells there.
        silence_s: longest wait for a line or the end.

    Raises:
        RunFailed: the process ended before its work, or told nothing for too long; names the file.
    """
    handle, name = tempfile.mkstemp(prefix=f"{work.__name__.strip('_')}-", suffix=".log")
    os.close(handle)
    log = Path(name)
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, log, work, arguments, named), name=work.__name__)
    process.start()
    theirs.close()
    try:
        while mine.poll(silence_s):
            kind, told = mine.recv()
            if kind == "line":
                progress(told)
                continue
            log.unlink()
            if kind == "failed":
                raise told
            result: T = told
            return result
        raise RunFailed(f"{_of(work)} told nothing for {silence_s:g} s ({log} has what it printed)")
    except EOFError:
        said = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        last = f": {said[-1][:200]}" if said[-1] else ""
        raise RunFailed(f"{_of(work)} ended before its work was done{last} ({log} has what it printed)") from None
    finally:
        process.kill()
        process.join()


def _of(work: Callable[..., object]) -> str:
    return f"the process of {work.__module__}.{work.__name__}"


def _work(
    pipe: Connection,
    log: Path,
    work: Callable[..., object],
    arguments: tuple[object, ...],
    named: dict[str, object],
) -> None:
    # Who stops a run has the signal sent to this process too, by a terminal's group; what it means is for the caller to
    # say, with which this process ends in any case.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("ab") as file:
        for printed in (1, 2):
            os.dup2(file.fileno(), printed)
    leave_one_gpu(os.environ)
    try:
        pipe.send(("done", work(lambda line: pipe.send(("line", line)), *arguments, **named)))
    except (BadInput, RunFailed) as error:
        pipe.send(("failed", error))
