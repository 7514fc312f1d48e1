"""What died or hung during a run: told, written down, counted, and too much when there are too many in a while."""

import contextlib
import datetime
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from actors.metrics import Metrics
from actors.processes import deaths
from learner.types import EngineLostError, RankLostError
from orchestrator.errors import ComponentLost, RunFailed
from orchestrator.files import json_line
from orchestrator.progress import TELL
from rewards.environment import one_line

if TYPE_CHECKING:
    from orchestrator.sections import ClusterConfig

FILE_NAME = "failures.jsonl"
INCIDENT_S = 30.0
"""What is lost within this of a loss that counted is the same incident: a node goes with all that is on it."""


class Failures:
    """Counts them for the recipe's rule; one line each in RUN/failures.jsonl. Any thread may add.

    Args:
        config: `max_failures` incidents within `failure_window_s` are survived.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        config: "ClusterConfig",
        run_dir: Path,
        say: Callable[[str], None] = TELL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.say = say
        self.count = 0
        self.ending = False
        self._clock = clock
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        self.step = 0
        self._lost_from: Counter[int] = Counter()
        self._uncounted: list[str] = []

    def try_again(self, attempt: Callable[[], int | None]) -> int:
        """What `attempt` returns, made again as long as it returns None or loses a component.

        It sets `step` to where it goes on from.

        Raises:
            RunFailed: too many failures by the recipe's rule, or as many from one step at whatever distance: such a run
                does not get any further. Also whatever is no loss.
        """
        while True:
            try:
                code = attempt()
            except Exception as error:
                if not is_loss(error):
                    raise
                self.add("the run", one_line(error), action="all actors started again from the last checkpoint")
                self._lost_from[self.step] += 1
                if self._lost_from[self.step] > self.config.max_failures:
                    raise RunFailed(
                        f"lost {self._lost_from[self.step]} times on the way from step {self.step} to the next "
                        f"checkpoint (cluster.max_failures = {self.config.max_failures}), the last: {error}"
                    ) from error
            else:
                if code is not None:
                    return code

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """While the block lasts what dies counts; after it, the actors are ended on purpose (`ending`)."""
        self.ending = False
        self._count()
        try:
            yield
        finally:
            self.ending = True

    def add(self, component: str, what: str, *, action: str) -> None:
        """Note that `component` (rollout-0, learner, ...) was lost, and what is done about it.

        Raises:
            RunFailed: one too many.
        """
        with self._lock:
            now = self._clock()
            self.count += 1
            if not self._recent or now - self._recent[-1] > INCIDENT_S:
                self._recent.append(now)
            while now - self._recent[0] > max(self.config.failure_window_s, INCIDENT_S):
                self._recent.popleft()
            self._record(component, what, action)
            if len(self._recent) > self.config.max_failures:
                raise RunFailed(
                    f"{len(self._recent)} failures within {self.config.failure_window_s:g} s "
                    f"(cluster.max_failures = {self.config.max_failures}), the last: {component}: {what}"
                )
        self.say(f"lost {component}: {what}; {action}")

    def _record(self, component: str, what: str, action: str) -> None:
        time_now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = json_line({"time": time_now, "component": component, "what": what, "action": action})
        with (self.run_dir / FILE_NAME).open("a", encoding="utf-8") as file:
            file.write(line)
        self._uncounted.append(component)
        self._count()

    def _count(self) -> None:
        """For Ray's metrics; what was lost while there was no cluster is told to the next one."""
        import ray

        if not ray.is_initialized():
            return
        metrics = Metrics(run=self.run_dir.name)
        metrics.counter("mi_epo_failures", "Actors lost and started again", "component")
        while self._uncounted:
            metrics.add("mi_epo_failures", 1, component=self._uncounted.pop())


def is_loss(error: BaseException) -> bool:
    """Whether a part of the run was lost, so that a new set of actors can go on; an error of the work itself is not."""
    import ray

    lost = (ComponentLost, EngineLostError, RankLostError, *deaths())
    return isinstance(error, (*lost, ray.exceptions.NodeDiedError, ray.exceptions.GetTimeoutError))
