"""How far a stage is: a bar on a terminal; elsewhere lines that are due, and none of a stage that is short."""

import io
import pickle
import time

import pytest

from orchestrator.console import Console
from orchestrator.pace import Pace
from orchestrator.progress import Progress, Rarely, how_far, time_left, waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(total, updates, every_s=0.0):
    lines: list[str] = []
    pace = Pace(say=lines.append, what="evaluating", unit="responses", total=total, every_s=every_s, desc="vLLM's")
    for count in updates:
        time.sleep(0.002)
        pace.update(count)
    pace.close()
    return [line for line in lines if isinstance(line, Progress)]


def test_what_counts_with_tqdm_tells_how_many_are_done_and_at_last_that_all_are():
    lines = told(100, [40, 0, 59, 1])
    assert [(line.stage, line.done, line.total) for line in lines] == [
        ("evaluating", done, 100) for done in (40, 99, 100)
    ]
    assert lines[0].startswith("evaluating: 40 of 100 responses, about 0 s left") and lines[-1].is_over
    assert lines[-1] == "evaluating: 100 of 100 responses"


def test_it_tells_no_more_often_than_asked_and_its_end_where_work_stops_half_way():
    assert [line.done for line in told(10, [1] * 9, every_s=60.0)] == [10]


def test_the_time_that_is_left_goes_by_the_pace_since_the_stage_began():
    minute_ago = time.monotonic() - 60.0
    line = how_far("sampling", 100, 300, "answers", started=minute_ago, also="loss 0.5")
    assert line == "sampling: 100 of 300 answers, loss 0.5, about 2 min left"
    assert how_far("training", 15, 20, "steps", started=minute_ago, first=10).endswith("about 60 s left")
    assert time_left(89.4) == "about 89 s left" and time_left(90.0) == "about 2 min left"


def test_how_far_a_stage_is_comes_whole_out_of_the_process_that_does_it():
    line = pickle.loads(pickle.dumps(how_far("sampling", 1, 3, "answers", started=0.0)))
    assert (line.stage, line.done, line.total) == ("sampling", 1, 3)


def test_where_there_is_no_bar_a_stage_is_told_every_half_minute_and_lines_at_once():
    lines: list[str] = []
    now = [0.0]
    say = Rarely(lines.append, clock=lambda: now[0])
    for second in range(0, 100, 10):
        now[0] = float(second)
        say(Progress(f"at {second}").of("long", second + 1, 101))
        say(Progress("short").of("short", second % 20, 20))
    say(Progress("over").of("long", 101, 101))
    now[0] = 131.0
    say(Progress("begun again").of("long", 1, 101))
    say("a line")
    assert lines == ["at 30", "short", "at 60", "short", "at 90", "short", "a line"]


def test_what_nobody_can_count_is_said_once_and_is_over_even_where_it_fails():
    said: list[str] = []
    with pytest.raises(ValueError), waiting(said.append, "starting ..."):
        raise ValueError
    line, begun, over = said
    assert line == "starting ..." and not isinstance(line, Progress)
    assert isinstance(begun, Progress) and isinstance(over, Progress)
    assert begun.total == 0 and not begun.is_over and over.stage == begun.stage and over.is_over


def test_a_terminal_shows_a_bar_under_the_lines_as_long_as_its_stage_lasts(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Console(terminal) as console:
        console.say(Progress("sampling: 5 of 10 [answers]").of("sampling", 5, 10))
        console.say("a line of [its] own")
        during = terminal.getvalue()
        console.say(Progress("done").of("sampling", 10, 10))
        terminal.seek(0)
        terminal.truncate()
        console.say("afterwards")
    assert "━" in during and "a line of [its] own" in during and "5 of 10 [answers]" in during
    assert terminal.getvalue() == "afterwards\n"


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch, kind):
    monkeypatch.setenv("TERM", kind) if kind else monkeypatch.delenv("TERM", raising=False)
    terminal = Terminal()
    with Console(terminal) as console:
        console.say(Progress("1 of 2").of("sampling", 1, 2))
        console.say("a line")
    assert terminal.getvalue() == "a line\n"


def test_a_log_file_gets_no_bar():
    file = io.StringIO()
    with Console(file) as console:
        console.say(Progress("1 of 2").of("sampling", 1, 2))
        console.say("a line")
    assert file.getvalue() == "a line\n"
