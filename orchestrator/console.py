"""Where a command's lines go: on a terminal each stage that lasts has a bar under them."""

import os
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from orchestrator.progress import Progress, Rarely

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

BAR_WIDTH = 24
DRAWN_PER_S = 4


class Console:
    """Give `say` to whatever has something to tell; safe from any thread.

    Example: `with Console() as console: train(recipe, run_dir, say=console.say)`

    Args:
        out: default: standard output, as it is when a line is said.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._rarely = Rarely(self._print)
        self._lock = threading.RLock()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def say(self, line: str) -> None:
        """Tell a line; a `Progress` moves its stage's bar, or is told now and then where no bar can be."""
        with self._lock:
            if not isinstance(line, Progress) or not self._draws:
                self._rarely(line)
            elif line.is_over:
                self._remove(line.stage)
            else:
                self._move(line)

    def close(self) -> None:
        """Take away all bars."""
        with self._lock:
            self._tasks.clear()
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    @property
    def _draws(self) -> bool:
        return (self._out or sys.stdout).isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}

    def _print(self, line: str) -> None:
        # One write, so that lines of two threads never run together.
        if self._bars is not None and self._out is not None:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(f"{line}\n", end="", flush=True, file=self._out)

    def _move(self, line: Progress) -> None:
        if self._bars is None:
            self._bars = _bars(self._out or sys.stdout)
            self._bars.start()
        text, done, total = str(line), line.done, line.total or None
        if line.stage in self._tasks:
            self._bars.update(self._tasks[line.stage], description=text, completed=done, total=total)
        else:
            self._tasks[line.stage] = self._bars.add_task(text, completed=done, total=total)

    def _remove(self, stage: str) -> None:
        task = self._tasks.pop(stage, None)
        if task is None or self._bars is None:
            return
        self._bars.remove_task(task)
        if not self._tasks:
            self.close()


def _bars(out: TextIO) -> "Bars":
    from rich import progress as rich
    from rich.console import Console as Terminal
    from rich.table import Column

    return rich.Progress(
        rich.BarColumn(bar_width=BAR_WIDTH),
        rich.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        rich.TimeElapsedColumn(),
        console=Terminal(file=out, force_terminal=True, highlight=False),
        refresh_per_second=DRAWN_PER_S,
        redirect_stderr=sys.stderr.isatty(),
        transient=True,
    )


CONSOLE = Console()
"""Of the command that runs in this process."""
