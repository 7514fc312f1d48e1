"""A run on one machine is this machine's own business."""

import json
import os
import subprocess
import sys
import time

import pytest

from orchestrator.cli import main
from tests.whole_runs import REPOSITORY, tiny_recipe

MINIATURE = REPOSITORY / "deploy" / "recipes" / "miniature.yaml"
LOOK = """
import json, sys, time
import psutil
from orchestrator import cluster
from orchestrator.config import load_recipe

with cluster.connect(load_recipe(sys.argv[1], ["cluster.dashboard=true"])):
    import ray

    from learner.config import LearnerConfig
    from learner.worker import LearnerGroup

    options = dict(model=sys.argv[2], total_steps=1, pairs_per_step=2, seed=0, run_name="look")
    with LearnerGroup.start(LearnerConfig(num_cpus=0.1, ranks=2), **options) as learner:
        time.sleep(3)
        names = {rank["pid"]: f"rank {rank['rank']}" for rank in learner.info}
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        hosts = {
            (names.get(process.pid, process.name()), connection.laddr.ip)
            for process in family for connection in process.net_connections("inet") if connection.status == "LISTEN"
        }
print(json.dumps(sorted(hosts)))
"""


@pytest.mark.ray
def test_a_local_cluster_and_its_learner_listen_on_loopback_only(tmp_path):
    """In a process of its own: Ray reads where to bind when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tiny_recipe(tmp_path)), str(tmp_path / "policy")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    listening = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet", "rank 0", "rank 1"} <= {name for name, _ in listening}
    assert {host for _, host in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


@pytest.mark.parametrize("port", ["1", "99999"])
def test_a_cluster_that_does_not_answer_is_bad_input_within_seconds(port, capsys):
    started = time.monotonic()
    assert main(["plan", str(MINIATURE), "--live", f"cluster.address=127.0.0.1:{port}"]) == 2
    assert time.monotonic() - started < 30
    said = capsys.readouterr().err
    assert f"cluster.address: no Ray cluster could be joined at '127.0.0.1:{port}': nothing answers there" in said
