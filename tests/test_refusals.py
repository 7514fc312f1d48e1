"""What a running head refuses: a process without its token, of another Ray, too large a run, too large an upload.

One head for all, which wants a token. Commands are processes of their own: Ray reads its way of authentication once.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.heads import Head, started_head
from tests.whole_runs import REPOSITORY, command

pytestmark = pytest.mark.ray
TOKEN = "0123456789abcdef" * 2
ITS_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
MINIATURE = REPOSITORY / "deploy" / "recipes" / "miniature.yaml"
SOON_S = 30.0
"""A few on an idle machine; a loaded one needs as long to import Ray."""
TELL_OTHER_VERSIONS = """
import json, sys
from ray._raylet import GcsClient

gcs, place = GcsClient(address=sys.argv[1]), (b"CLUSTER_METADATA", b"cluster")
told = json.loads(gcs.internal_kv_get(*place))
gcs.internal_kv_put(place[0], json.dumps(told | json.loads(sys.argv[2])).encode(), True, place[1])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started_head(tmp_path_factory.mktemp("head") / "log", cpus=2, environment=ITS_TOKEN) as head:
        yield head


def refused(head: Head, folder: Path, *overrides: str, **environment: str) -> str:
    """What `mi-epo train` says of a run that it does not begin, after the name of the program."""
    for name in ("home", "work"):
        (folder / name).mkdir(exist_ok=True)
    arguments = [f"assets.directory={folder / 'work' / 'assets'}", *overrides, "--run-dir", folder / "work" / "run"]
    begun = time.monotonic()
    done = subprocess.run(
        command("train", MINIATURE, *arguments),
        cwd=REPOSITORY,
        env={**os.environ, "HOME": str(folder / "home"), "RAY_ADDRESS": head.address, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert time.monotonic() - begun < SOON_S
    assert done.stdout == "" and list((folder / "work").iterdir()) == []
    assert TOKEN not in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("mi-epo: "), done.stderr
    return done.stderr.removeprefix("mi-epo: ")


@pytest.mark.parametrize(
    ("environment", "is_now"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "disabled"),
        ({"RAY_AUTH_MODE": "token"}, "token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}, "token"),
    ],
    ids=["no authentication", "no token", "another token"],
)
def test_a_process_without_the_token_is_told_what_to_set(head, tmp_path, environment, is_now):
    said = refused(head, tmp_path, **environment)
    assert said == (
        f"cluster.address: no Ray cluster could be joined at '{head.address}': its head wants a token, and this "
        f"process has none or another; set RAY_AUTH_MODE=token (it is {is_now}) and RAY_AUTH_TOKEN to what "
        "`ray get-auth-token` prints on the head\n"
    )


def test_a_run_larger_than_the_cluster_is_told_with_what_is_asked_and_what_is_there(head, tmp_path):
    said = refused(head, tmp_path, "rollout.engines=4", "rollout.num_cpus=1", **ITS_TOKEN)
    assert (
        f"Ray cluster {head.address} has no room for the recipe: rollout: there is room for 2 of its 4 actors" in said
    )
    assert re.search(r"\n  rollout +4 +1 +0\n", said) and re.search(r"\n  \d+\.\d+\.\d+\.\d+ +2 +0\n", said)


def test_a_head_of_another_ray_or_python_is_told_with_both_versions(head, tmp_path):
    """The head's own record of its versions, changed in its store; Ray compares the second by itself."""
    own = tell_versions(head)
    try:
        tell_versions(head, ray_version="2.59.0")
        said = refused(head, tmp_path, **ITS_TOKEN)
        assert f"its head runs Ray 2.59.0, this process Ray {own['ray_version']}" in said and said.count("\n") == 1
        tell_versions(head, **own | {"python_version": "3.12.1"})
        said = refused(head, tmp_path, **ITS_TOKEN)
        assert "Python: 3.12.1" in said and f"Python: {own['python_version']}" in said and said.count("\n") == 1
    finally:
        tell_versions(head, **own)


def tell_versions(head: Head, **versions: str) -> dict[str, str]:
    """Change what the head tells of itself; what it told before."""
    asked = [sys.executable, "-c", TELL_OTHER_VERSIONS, head.address, json.dumps(versions)]
    environment = {**os.environ, **ITS_TOKEN}
    done = subprocess.run(asked, env=environment, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


def test_a_working_directory_that_is_too_large_is_refused_by_ray_and_no_job_begins(head, tmp_path):
    from ray.job_submission import JobSubmissionClient

    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.truncate(100 << 20)  # and some bytes of the archive that it is packed into
    client = JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {TOKEN}"})
    with pytest.raises(RuntimeError, match=f"413: Maximum request body size {100 << 20} exceeded"):
        client.submit_job(entrypoint="true", submission_id="large", runtime_env={"working_dir": str(tmp_path)})
    assert [job.submission_id for job in client.list_jobs() if job.submission_id] == []
