"""How far a stage is, told in lines: not too often, and with the time that is left at its pace so far."""

import io
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

EVERY_S = 30.0
"""Between two lines; a stage that is done sooner tells none."""


class Pace(tqdm):
    """Call `update(n)` for every n that are done, and `close` at the end.

    Args:
        say: gets the lines.
        what: is being done. Example: "evaluating" tells "evaluating: 400 of 1056 responses, about 2 min left"
        unit: of what is counted, in the plural.
        total: how many there are.
        ignored: what vLLM says to a bar about its looks.
    """

    monitor_interval = 0  # no thread that watches: a stage that stands still has nothing to tell

    def __init__(
        self, *, say: Callable[[str], None], what: str, unit: str, total: int, every_s: float = EVERY_S, **ignored: Any
    ) -> None:
        self._say, self._what, self._unit = say, what, unit
        super().__init__(total=total, mininterval=every_s, miniters=1, leave=False, file=io.StringIO())

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Called by tqdm whenever a line is due."""
        if msg is None and 0 < self.n < self.total:
            left = self.format_dict["elapsed"] / self.n * (self.total - self.n)
            self._say(f"{self._what}: {self.n} of {self.total} {self._unit}, {time_left(left)}")
        return True


def time_left(seconds: float) -> str:
    """Example: time_left(130.0) -> "about 2 min left" """
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
