"""Work in a process of its own: what comes back of it, and what it costs nobody when it goes wrong."""

import os
import tempfile
import time

import pytest

from orchestrator.errors import BadInput, RunFailed
from orchestrator.tasks.apart import run_apart


def double(progress, number, *, by=2):
    progress(f"doubling {number}")
    progress("done")
    return {"result": number * by, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


def refuse(progress):
    raise BadInput("rows: must be there, got none")


def die(progress):
    raise LookupError("no such thing")


def print_loudly(progress):
    print("a notice of some library")
    os.system("echo and of a program")
    progress("heard")


def say_nothing(progress):
    time.sleep(60)


def test_a_result_and_its_lines_come_back_from_another_process_that_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    lines: list[str] = []
    found = run_apart(double, lines.append, 21, by=2)
    assert (found["result"], lines) == (42, ["doubling 21", "done"])
    assert found["pid"] != os.getpid() and found["gpus"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,4"


def test_what_is_wrong_with_the_input_is_told_here():
    with pytest.raises(BadInput, match="rows: must be there, got none"):
        run_apart(refuse, print)


def test_what_libraries_print_is_not_told(capfd):
    lines: list[str] = []
    run_apart(print_loudly, lines.append)
    assert lines == ["heard"] and capfd.readouterr() == ("", "")


def test_a_process_that_dies_or_tells_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RunFailed, match=r"of test_apart\.die ended .*: LookupError: no such thing \((/.+) has") as told:
        run_apart(die, print)
    [log] = tmp_path.iterdir()
    assert str(log) in str(told.value) and "Traceback" in log.read_text()
    started = time.monotonic()
    with pytest.raises(RunFailed, match=r"test_apart\.say_nothing told nothing for 4 s"):
        run_apart(say_nothing, print, silence_s=4)
    assert time.monotonic() - started < 50
