"""A lock is held by one process, and by a child that inherits it, for as long as they live."""

import subprocess
import sys
import time

import pytest

from orchestrator.errors import BadInput
from orchestrator.files import locked

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_held_lock_is_waited_for_until_the_deadline_and_then_named(tmp_path):
    path = tmp_path / "folder" / ".lock"
    with (
        locked(path, timeout_s=0, late="unused"),
        pytest.raises(BadInput, match="somebody else has it"),
        locked(path, timeout_s=0, late="somebody else has it"),
    ):
        pass
    with locked(path, timeout_s=0, late="unused"):
        pass


def test_a_child_that_inherits_the_lock_holds_it_until_it_ends(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, timeout_s=0, late="unused") as file:
        child = subprocess.Popen(SLEEP, pass_fds=(file.fileno(),))
    try:
        with pytest.raises(BadInput, match="still there"), locked(path, timeout_s=0, late="still there"):
            pass
    finally:
        child.kill()
        child.wait()
    started = time.monotonic()
    with locked(path, timeout_s=10, late="unused"):
        assert time.monotonic() - started < 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadInput, match=r"file/.lock: cannot be written"),
        locked(tmp_path / "file" / ".lock", timeout_s=0, late=""),
    ):
        pass
