"""Stopping on request, by SIGINT or SIGTERM: after a step and its checkpoint, at once where there is none to save."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

LEAVE_S = 30.0
"""Longest that a stop outside the steps takes: actors and Ray are ended, and the process if they do not let it go."""
STANDARD_ERROR = 2


class StopFlag:
    """The signals of a run.

    While steps are done (`within_steps`) a signal is noted, and the loop ends where it can save. Elsewhere (start-up,
    the evaluations before and after) there is nothing to save, and it raises KeyboardInterrupt; so does a second one,
    anywhere.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._limit_s: float | None = None
        self._last_resort: threading.Timer | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Handle both signals until the end of the block."""
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        except SystemExit:
            # Symptom: a SIGTERM while Ray starts is told only once it has ended. Cause: `ray.init` begins by replacing
            # the handler with one that calls sys.exit. Delete when it leaves handlers alone.
            self.signal = self.signal or signal.SIGTERM
            self._tell(f"stops at once, within {LEAVE_S:g} s")
            raise KeyboardInterrupt from None
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def installed_again(self) -> Iterator[None]:
        """After `ray.init`, which replaces the SIGTERM handler with one that ends the driver within 3 s."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        yield

    @contextlib.contextmanager
    def within_steps(self, limit_s: float) -> Iterator[None]:
        """`limit_s`: longest that the step under way and its checkpoint may take."""
        self._limit_s = limit_s
        try:
            yield
        finally:
            self._limit_s = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None and self._limit_s is not None:
            self.signal = number
            self._tell(
                f"stops after this step and its checkpoint, by their deadlines within {self._limit_s:g} s; "
                "once more: at once, and the checkpoint before stands"
            )
            return
        self.signal = self.signal or number
        self._tell(f"stops at once, within {LEAVE_S:g} s")
        if self._last_resort is None:
            self._last_resort = threading.Timer(LEAVE_S, os._exit, [self.exit_code])
            self._last_resort.daemon = True
            self._last_resort.start()
        raise KeyboardInterrupt

    def _tell(self, what: str) -> None:
        """Not by `print`, which a handler may have interrupted."""
        os.write(STANDARD_ERROR, f"mi-epo: {signal.Signals(self.signal or signal.SIGINT).name}: {what}\n".encode())
