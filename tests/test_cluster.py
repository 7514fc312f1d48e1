"""A local cluster is this machine's own business; one that cannot be joined is told before anything is begun."""

import json
import os
import socketserver
import subprocess
import sys
import threading
import time

import pytest

from orchestrator.cli import main
from orchestrator.cluster import connection as cluster
from orchestrator.recipes import load_recipe
from orchestrator.run.rundir import RunDir
from tests.tiny_models import make_tiny_policy
from tests.whole_runs import REPOSITORY, tiny_recipe

MINIATURE = REPOSITORY / "deploy" / "recipes" / "miniature.yaml"
LOOK = """
import json, sys, time
import psutil
from orchestrator.cluster import connection as cluster
from orchestrator.recipes import load_recipe

with cluster.connect(load_recipe(sys.argv[1], ["cluster.dashboard=true"])):
    import ray

    from learner.config import LearnerConfig
    from learner.group import LearnerGroup
    from learner.methods import METHODS

    method = METHODS["mi-epo"].Config()
    options = dict(
        model=sys.argv[2], method=method, total_steps=1, seed=0, run_name="look"
    )
    with LearnerGroup.start(LearnerConfig(num_cpus=0.1, ranks=2), **options) as learner:
        time.sleep(3)
        names = {rank.pid: f"rank {rank.rank}" for rank in learner.info}
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


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_of_something_else_is_bad_input_as_well(greeting, capsys, monkeypatch):
    """Such as the dashboard's."""
    monkeypatch.setattr(cluster, "ANSWER_S", 2.0)
    with Stranger(greeting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert main(["plan", str(MINIATURE), "--live", f"cluster.address={address}"]) == 2
        server.shutdown()
    said = capsys.readouterr().err
    assert f"at '{address}': what listens there does not answer as the head of a Ray cluster does" in said
    assert said.count("\n") == 1


class Stranger(socketserver.ThreadingTCPServer):
    """Greets whoever comes and hears what they say."""

    def __init__(self, greeting: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Ear)
        self.greeting = greeting
        self.daemon_threads = True


class Ear(socketserver.BaseRequestHandler):
    server: Stranger

    def handle(self) -> None:
        self.request.sendall(self.server.greeting)
        while not self.server.greeting and self.request.recv(1 << 16):
            pass


@pytest.mark.parametrize("overrides", [["cluster.address=127.0.0.1:1"], ["rollout.num_cpus=10000"]])
def test_a_run_that_can_have_no_place_leaves_nothing_behind(overrides, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "FIRST_CONTACT_S", 1.0)
    elsewhere = [f"assets.directory={tmp_path / 'assets'}"]
    assert main(["train", str(MINIATURE), *overrides, *elsewhere, "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().out == ""  # nothing was begun
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_can_have_no_place_leaves_nothing_behind(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "FIRST_CONTACT_S", 1.0)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    run = RunDir.create(tmp_path / "run", load_recipe(MINIATURE, [f"assets.directory={tmp_path / 'assets'}"]))
    make_tiny_policy(run.policy)
    assert main(["evaluate", str(run.path)]) == 2
    assert "no Ray cluster could be joined" in capsys.readouterr().err
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "policy"} and not (
        tmp_path / "assets"
    ).exists()


def test_a_head_of_another_ray_is_told_with_both_versions():
    assert cluster.other_ray({"ray_version": "2.59.0", "python_version": "3.11.7"}, "2.60.0") == (
        "its head runs Ray 2.59.0, this process Ray 2.60.0; a cluster has one version everywhere"
    )


@pytest.mark.parametrize("told", [{"ray_version": "2.60.0"}, {}])
def test_a_head_of_the_same_ray_or_of_none_that_it_tells_is_not_refused(told):
    assert cluster.other_ray(told, "2.60.0") is None
