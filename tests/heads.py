"""A Ray head of its own for a test: started as a user does, on ports of its own, ended with the block."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.learner_ranks import free_port

RAY = str(Path(sys.executable).with_name("ray"))
TIMEOUT_S = 150


@dataclass(frozen=True)
class Head:
    process: "subprocess.Popen[bytes]"
    address: str
    dashboard: str
    metrics: str


@contextlib.contextmanager
def started_head(log: Path, *, cpus: int, environment: Mapping[str, str]) -> Iterator[Head]:
    gcs, dashboard, agent, metrics = (free_port() for _ in range(4))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", f"--port={gcs}", f"--num-cpus={cpus}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
                "--object-store-memory=200000000",
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    head = Head(process, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")
    try:
        wait_for(lambda: process.poll() is not None or _answers(head.dashboard), "dashboard")
        assert process.poll() is None, log.read_text()
        yield head
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what if isinstance(what, str) else what()} within {TIMEOUT_S} s"
        time.sleep(0.5)


def wait_until_gone(actor: str) -> None:
    """Ray notes an actor's end a moment after it was killed."""
    import ray

    def is_gone() -> bool:
        try:
            ray.get_actor(actor)
        except ValueError:
            return True
        return False

    wait_for(is_gone, f"end of {actor}")


def _answers(dashboard: str) -> bool:
    """Whether the dashboard is there; one that wants a token says so."""
    try:
        return requests.get(f"{dashboard}/api/version", timeout=2).status_code in (200, 401)
    except requests.RequestException:
        return False
