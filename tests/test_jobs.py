"""A run as a Ray job on a head of its own: submit, watch, stop, submit again, as the README says."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from ray.job_submission import JobSubmissionClient

from tests.heads import RAY, TIMEOUT_S, Head, started_head, wait_for
from tests.monitoring import asked_metrics
from tests.whole_runs import REPOSITORY, lines, steps_done, tiny_recipe

pytestmark = pytest.mark.ray
STEPS = 90


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


def told_metrics(head: Head) -> set[str]:
    """Names on the endpoint that Prometheus reads."""
    text = requests.get(head.metrics, timeout=10).text
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def kill_a_judge(head: Head) -> None:
    family = psutil.Process(head.process.pid).children(recursive=True)
    judges = [process for process in family if "ray::RewardActor" in " ".join(process.cmdline())]
    judges[0].kill()


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    often = {"RAY_metrics_report_interval_ms": "1000"}  # so that the run need not be a long one
    with started_head(tmp_path_factory.mktemp("head") / "log", cpus=2, environment=often) as head:
        yield head


def test_a_job_tells_its_metrics_survives_a_judge_saves_when_stopped_and_goes_on_when_submitted_again(
    head: Head, tmp_path: Path
) -> None:
    run, dashboard = tmp_path / "run", head.dashboard
    # Prompts that fill a block of vLLM's prefix cache, and a judge that drops some: so that every metric has a cause.
    recipe = tiny_recipe(tmp_path, prompt_words=40, second="tests.whole_runs:spotty_brevity")
    client = JobSubmissionClient(dashboard)

    def submit(name: str) -> None:
        entry = (sys.executable, "-m", "orchestrator", "train", str(recipe), f"loop.steps={STEPS}")
        given = ("--address", dashboard, "--submission-id", name, "--runtime-env", "deploy/runtime_env.yaml")
        label = ("--metadata-json", '{"experiment": "tiny"}')
        ray("job", "submit", "--no-wait", *given, *label, "--", *entry, "--run-dir", str(run))

    def logs(name: str) -> str:
        return ray("job", "logs", "--address", dashboard, name)

    def ended(name: str) -> bool:
        """Asked without the command, which takes seconds of what the run needs too."""
        return client.get_job_status(name).is_terminal()

    submit("first")
    assert "'experiment': 'tiny'" in ray("job", "list", "--address", dashboard)
    wait_for(lambda: ended("first") or steps_done(run) > 2, "step")
    kill_a_judge(head)
    # Told where there is a GPU, and where there are annotators.
    asked = asked_metrics() - {"ray_node_gpus_utilization", "ray_mi_epo_judge_accuracy"}
    wait_for(lambda: asked <= told_metrics(head), lambda: f"metrics {asked - told_metrics(head)}")
    ray("job", "stop", "--address", dashboard, "first")
    wait_for(lambda: ended("first"), "end of the stopped job")
    assert json.loads((run / "run.json").read_text())["status"] == "stopped", logs("first")
    done = steps_done(run)
    assert 2 < done < STEPS and (run / "checkpoints" / f"step-{done:06d}" / "STABLE").exists()
    assert f"stopped at step {done}, checkpoint" in logs("first")

    submit("second")
    wait_for(lambda: ended("second"), "end of the second job")
    assert "succeeded" in ray("job", "status", "--address", dashboard, "second").lower()
    said = logs("second")
    assert json.loads((run / "run.json").read_text())["status"] == "finished", said
    assert [record["step"] for record in lines(run / "metrics.jsonl")] == list(range(STEPS))
    assert f"going on from {run}" in said and said.count("step ") >= STEPS - done
