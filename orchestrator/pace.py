"""A bar for what counts with tqdm, such as vLLM, that draws nothing and tells `Progress`."""

import io
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from orchestrator.progress import MADE_EVERY_S, how_far


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
        self,
        *,
        say: Callable[[str], None],
        what: str,
        unit: str,
        total: int,
        every_s: float = MADE_EVERY_S,
        **ignored: Any,
    ) -> None:
        self._say, self._what, self._unit, self._started = say, what, unit, time.monotonic()
        super().__init__(total=total, mininterval=every_s, miniters=1, leave=False, file=io.StringIO())

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Called by tqdm whenever a line is due, and with "" at the end."""
        if msg is None and 0 < self.n < self.total:
            self._tell(self.n)
        return True

    def close(self) -> None:
        if not self.disable:
            self._tell(self.total)
        super().close()

    def _tell(self, done: int) -> None:
        self._say(how_far(self._what, done, self.total, self._unit, started=self._started))
