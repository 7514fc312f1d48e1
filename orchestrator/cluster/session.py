"""Where a local Ray cluster keeps its session: its logs, what it spills, and its sockets, whose paths must be short."""

import os
from collections.abc import MutableMapping
from pathlib import Path

LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path (unix(7))."""
BELOW = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""What Ray puts below its temporary folder, with the largest number of a process."""
LISTENER = len("/pymp-xxxxxxxx/listener-xxxxxxxx")
"""What Python's multiprocessing, with which the dashboard is made, puts below TMPDIR."""
SHORT = "/tmp"
"""Ray's own choice without TMPDIR."""


def shorten(environment: MutableMapping[str, str]) -> None:
    """Have the processes of a local cluster put their sockets where these fit. Raises OSError, as `session_root`."""
    root = session_root()
    environment["RAY_TMPDIR"] = root
    if len(os.fsencode(environment.get("TMPDIR", ""))) > LONGEST_SOCKET - LISTENER:
        environment["TMPDIR"] = root


def session_root() -> str:
    """The temporary folder that Ray can start in: RAY_TMPDIR, TMPDIR, or /tmp where these are too long or read-only.

    Raises:
        OSError: there is none.
    """
    asked = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", SHORT))
    for folder in (asked, SHORT):
        if os.path.isabs(folder) and len(os.fsencode(folder)) <= LONGEST_SOCKET - BELOW and _is_writable(folder):
            return folder
    raise OSError(
        f"RAY_TMPDIR: must be a folder that can be written, of at most {LONGEST_SOCKET - BELOW} bytes for the paths of "
        f"Ray's sockets, got {asked!r}, and {SHORT} cannot be written"
    )


def _is_writable(folder: str) -> bool:
    """Also one that Ray would have to make."""
    there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)
