"""A file that one process at a time may hold. The lock ends with the process, however that ends."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from orchestrator.errors import BadInput


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, late: str) -> Iterator[IO[str]]:
    """Hold `path`, made where there is none, until the end of the block.

    Yields the open file: a child process that inherits it (`pass_fds`) holds the lock as well, until it ends.

    Raises:
        BadInput: the folder cannot be written, or another process held the lock for `timeout_s`, which `late` says.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(late) from None
                time.sleep(0.5)
        yield file
