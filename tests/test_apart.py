"""Work in a process of its own: what comes back of it, and what it costs nobody when it goes wrong."""

import multiprocessing
import os
import signal
import tempfile
import threading
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


def outlive_the_signals_of_a_terminal(progress):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    return "done"


def start_one_and_die(progress):
    threading.Thread(target=run_apart, args=(say_pid_and_wait, progress)).start()
    time.sleep(60)


def say_pid_and_wait(progress):
    progress(str(os.getpid()))
    time.sleep(60)


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


def test_who_stops_a_run_by_a_terminal_leaves_it_to_the_caller_what_becomes_of_the_work():
    assert run_apart(outlive_the_signals_of_a_terminal, print) == "done"


def test_no_process_outlives_the_one_that_started_it():
    pids: list[int] = []

    def kill_it_in_the_middle(line):
        pids.append(int(line))
        (parent,) = multiprocessing.active_children()
        parent.kill()

    with pytest.raises(RunFailed, match="ended before its work was done"):
        run_apart(start_one_and_die, kill_it_in_the_middle)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pids[0]}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pids[0]}")
