"""How far a stage is: a line with the figures in it, which a terminal draws as a bar and anything else tells rarely."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TOLD_EVERY_S = 30.0
"""Between two lines of one stage, where there is no bar; a stage that is done sooner tells none."""
MADE_EVERY_S = 1.0
"""Between two of what a stage tells at all."""


class Progress(str):
    """A line that says how far a stage is.

    Example: `say(Progress("evaluating: 400 of 1056 responses, about 2 min left").of("evaluating", 400, 1056))`
    """

    stage = ""
    done = 0
    total = 0
    """Nothing is left where `done` reaches it; 0 where nobody knows."""

    def of(self, stage: str, done: int, total: int) -> "Progress":
        self.stage, self.done, self.total = stage, done, total
        return self

    @property
    def is_over(self) -> bool:
        return 0 < self.total <= self.done


def how_far(
    stage: str, done: int, total: int, unit: str, *, started: float, first: int = 0, also: str = ""
) -> Progress:
    """Of a stage that began at `first` of `total`, at `started` of `time.monotonic`.

    Example: its text is "sampling: 40 of 900 answers, about 2 min left".

    Args:
        also: what else is to be told. Example: "loss 0.64"
    """
    left = ""
    if first < done < total:
        left = time_left((time.monotonic() - started) / (done - first) * (total - done))
    told = ", ".join(part for part in (f"{stage}: {done} of {total} {unit}", also, left) if part)
    return Progress(told).of(stage, done, total)


@contextmanager
def waiting(say: Callable[[str], None], line: str) -> Iterator[None]:
    """Say what is waited for, as long as the work in it lasts; how long nobody knows."""
    say(line)
    say(Progress(line).of(line, 0, 0))
    try:
        yield
    finally:
        say(Progress(line).of(line, 1, 1))


class Rarely:
    """Tells lines as they come, and of a stage's progress what is due every `TOLD_EVERY_S`.

    Example: `say = Rarely(print)`
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._told: dict[str, float] = {}

    def __call__(self, line: str) -> None:
        if not isinstance(line, Progress):
            self._say(line)
            return
        now = self._clock()
        if line.is_over:
            self._told.pop(line.stage, None)
        elif now - self._told.setdefault(line.stage, now) >= TOLD_EVERY_S and line.total:
            self._told[line.stage] = now
            self._say(str(line))


TELL = Rarely(print)
"""What Python's own users hear, unless they say otherwise."""


def time_left(seconds: float) -> str:
    """Example: time_left(130.0) -> "about 2 min left" """
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
