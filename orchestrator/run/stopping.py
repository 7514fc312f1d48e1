"""Stopping on request: a signal is noted, and the loop ends where it can save."""

import contextlib
import signal
from collections.abc import Iterator


class StopFlag:
    """Set by SIGINT or SIGTERM, read by the loop between stages; a second signal ends the process the hard way."""

    def __init__(self) -> None:
        self.signal: int | None = None

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
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def installed_again(self) -> Iterator[None]:
        """After `ray.init`, which replaces the SIGTERM handler with one that ends the driver within 3 s."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        yield

    def _handle(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
