"""How far a stage is: lines that are due, honest about the time that is left, and none of a stage that is short."""

import time

from orchestrator.pace import Pace, time_left


def told(total, updates, every_s=0.0):
    lines: list[str] = []
    pace = Pace(say=lines.append, what="evaluating", unit="responses", total=total, every_s=every_s, desc="vLLM's")
    for count in updates:
        time.sleep(0.002)
        pace.update(count)
    pace.close()
    return lines


def test_a_line_tells_how_many_are_done_and_the_last_is_left_to_whoever_waits():
    lines = told(100, [40, 0, 59, 1])
    assert [line.rpartition(",")[0] for line in lines] == ["evaluating: 40 of 100 responses"] * 1 + [
        "evaluating: 99 of 100 responses"
    ]


def test_lines_come_no_more_often_than_asked_and_none_where_work_stops_half_way():
    assert told(10, [1] * 9, every_s=60.0) == []


def test_the_time_that_is_left_goes_by_the_pace_so_far():
    lines: list[str] = []
    pace = Pace(say=lines.append, what="sampling", unit="answers", total=300, every_s=0.0)
    pace.start_t -= 60.0  # as if a minute had passed
    pace.update(100)
    assert lines == ["sampling: 100 of 300 answers, about 2 min left"]
    assert time_left(89.4) == "about 89 s left" and time_left(90.0) == "about 2 min left"
