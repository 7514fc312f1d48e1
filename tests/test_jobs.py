"""A run as a Ray job on a head of its own: submit, stop, submit again, as the README says."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.learner_ranks import free_port
from tests.whole_runs import REPOSITORY, lines, steps_done, tiny_recipe

pytestmark = pytest.mark.ray
RAY = str(Path(sys.executable).with_name("ray"))
STEPS = 40
TIMEOUT_S = 150


def ray(*arguments: str) -> str:
    """What the command printed; given again while the head's agent, which comes last, is not there yet."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = subprocess.run([RAY, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, f"ray {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {TIMEOUT_S} s"
        time.sleep(0.5)


@pytest.fixture
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a head node that ends with the test."""
    port, gcs, agent = free_port(), free_port(), free_port()
    log = (tmp_path_factory.mktemp("head") / "log").open("w+")
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", f"--port={gcs}", "--num-cpus=2"),
            *(
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={port}",
                f"--dashboard-agent-listen-port={agent}",
                "--object-store-memory=200000000",
            ),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: head.poll() is not None or answers(address), "dashboard")
        assert head.poll() is None, Path(log.name).read_text()
        yield address
    finally:
        head.terminate()
        head.wait(timeout=60)
        log.close()


def answers(address: str) -> bool:
    import requests

    try:
        return bool(requests.get(f"{address}/api/version", timeout=2).ok)
    except requests.RequestException:
        return False


def test_a_stopped_job_saves_and_the_same_submission_goes_on(dashboard: str, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def submit(name: str) -> None:
        entry = (sys.executable, "-m", "orchestrator", "train", str(tiny_recipe(tmp_path)), f"loop.steps={STEPS}")
        given = ("--address", dashboard, "--submission-id", name, "--runtime-env", "deploy/runtime_env.yaml")
        ray("job", "submit", "--no-wait", *given, "--", *entry, "telemetry.wandb=disabled", "--run-dir", str(run))

    def logs(name: str) -> str:
        return ray("job", "logs", "--address", dashboard, name)

    def ended(name: str) -> bool:
        said = ray("job", "status", "--address", dashboard, name).lower()
        return any(word in said for word in ("succeeded", "stopped", "failed"))

    submit("first")
    wait_for(lambda: ended("first") or steps_done(run) > 2, "step")
    ray("job", "stop", "--address", dashboard, "first")
    wait_for(lambda: ended("first"), "end of the stopped job")
    assert json.loads((run / "run.json").read_text())["status"] == "stopped", logs("first")
    done = steps_done(run)
    assert 2 < done < STEPS and (run / "checkpoints" / f"step-{done:06d}" / "STABLE").exists()
    assert f"stopped at step {done}, checkpoint" in logs("first")

    submit("second")
    wait_for(lambda: ended("second"), "end of the second job")
    said = logs("second")
    assert json.loads((run / "run.json").read_text())["status"] == "finished", said
    assert [record["step"] for record in lines(run / "metrics.jsonl")] == list(range(STEPS))
    assert f"going on from {run}" in said and said.count("step ") >= STEPS - done
