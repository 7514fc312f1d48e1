"""What `ray job submit --runtime-env deploy/runtime_env.yaml` uploads: the code, whatever else lies in the checkout."""

import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.whole_runs import REPOSITORY

LIMIT_BYTES = 100 << 20
"""The dashboard takes no larger body (`test_refusals.py` shows it)."""
SMALL_BYTES = 10 << 20
LEFT_BEHIND = (".cache", ".git", ".venv", "comparisons", "policies", "runs", "wandb")
"""Folders that grow beside the code: outputs, models built or fitted, environments."""


class Dashboard(ThreadingHTTPServer):
    """Takes one package and one job as Ray's dashboard does, and keeps both."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.package = b""
        self.job: dict = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        if self.path.startswith("/api/packages/"):
            self.answer(404)
        else:
            self.answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": ""})

    def do_PUT(self) -> None:
        self.server.package = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        self.server.job = json.loads(self.body())
        self.answer(200, {"job_id": "first", "submission_id": "first"})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, content: object = None) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with Dashboard() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_checkout_full_of_runs_and_models_uploads_its_code_alone(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobSubmissionClient

    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(*LEFT_BEHIND, "__pycache__"))
    for name in LEFT_BEHIND:
        (checkout / name / "deep").mkdir(parents=True)
        with (checkout / name / "deep" / "model.safetensors").open("wb") as file:
            file.truncate(LIMIT_BYTES)
    monkeypatch.chdir(checkout)
    runtime_env = yaml.safe_load(Path("deploy/runtime_env.yaml").read_text())
    assert JobSubmissionClient(dashboard.address).submit_job(entrypoint="true", runtime_env=runtime_env) == "first"

    assert len(dashboard.package) < SMALL_BYTES < LIMIT_BYTES
    names = zipfile.ZipFile(io.BytesIO(dashboard.package)).namelist()
    assert {name.split("/")[0] for name in names} & set(LEFT_BEHIND) == set()
    assert {"orchestrator/cli.py", "learner/worker.py", "deploy/recipes/miniature.yaml", "pyproject.toml"} <= set(names)
    assert dashboard.job["runtime_env"]["working_dir"].startswith("gcs://")
    assert dashboard.job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "180"
