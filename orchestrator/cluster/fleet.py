"""The rollout engines while a run lasts: who is there, who holds which weights, and how the lost ones come back."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from actors.processes import call_ready, leaves_process, losses
from learner.types import EngineLostError, SyncReport
from orchestrator.cluster.failures import Failures
from orchestrator.errors import ComponentLost
from rewards.environment import one_line

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

END_TIMEOUT_S = 30.0
Result = TypeVar("Result")


class EnginesLost(ComponentLost):
    """No engine holds the asked version; `Fleet.with_engines` may still bring it back."""


class Replica:
    """One actor that Ray starts again when it dies, as the driver sees it. Any thread may ask.

    Attributes:
        life: grows when it dies and when it is back: a caller remembers it, so that all calls that one death broke tell
            one failure.
    """

    def __init__(self, handle: "ActorHandle", name: str, failures: Failures) -> None:
        self.handle = handle
        self.name = name
        self.life = 0
        self._holds: tuple[int, int] | None = None
        self._failures = failures
        self._returning: ObjectRef | None = None
        self._left = 0.0
        self._lock = threading.Lock()

    @property
    def holds(self) -> int | None:
        """Policy version of its weights; None since it died."""
        holds = self._holds
        return holds[1] if holds is not None and holds[0] == self.life else None

    def give(self, policy_version: int, life: int) -> None:
        """It holds these weights, unless it died since `life`."""
        self._holds = (life, policy_version)

    def call(self, method: str, *arguments: Any, **options: Any) -> "tuple[int, ObjectRef]":
        """(life in which the call was made, its reference, or its stream's where the options ask for one)."""
        life = self.life  # before the call: what dies in between must count as its death
        return life, getattr(self.handle, method).options(**options).remote(*arguments)

    def died(self, life: int, error: BaseException, *, end: bool = False) -> None:
        """A call made in `life` failed with `error`; the actor is loaded again from here on.

        While it is loaded again all calls fail, and none of them is another death.

        Args:
            end: the process is still there, and ended first; so it is when `error` says that it is of no further use.

        Raises:
            RunFailed: too many failures by the recipe's rule.
            ComponentLost: all actors are being ended.
        """
        if self._failures.ending:
            raise ComponentLost(f"{self.name}: ended")
        self.is_back()
        with self._lock:
            if life != self.life or self._returning is not None:
                return
            self.life += 1
            if end or leaves_process(error):
                _end(self.handle)
            self._returning, self._left = call_ready(self.handle), time.monotonic()
        self._failures.add(self.name, one_line(getattr(error, "cause", None) or error), action="started again")

    @property
    def returning(self) -> "ObjectRef | None":
        """Reference that is there when it is; None when it is."""
        return self._returning

    @property
    def away_s(self) -> float:
        return time.monotonic() - self._left if self._returning is not None else 0.0

    def is_back(self, timeout_s: float = 0.0) -> bool:
        """Whether it is loaded, at the latest `timeout_s` from now. Raises ComponentLost when it cannot be loaded."""
        import ray

        returning = self._returning
        if returning is None:
            return True
        done, _ = ray.wait([returning], timeout=timeout_s)
        if not done:
            return False
        try:
            ray.get(done[0])
        except ray.exceptions.RayError as error:
            raise ComponentLost(f"{self.name}: did not come back: {one_line(error)}") from None
        with self._lock:
            if self._returning is returning:
                self._returning = None
                self.life += 1  # what was called while it was away is not another death
        return True


def _end(handle: "ActorHandle") -> None:
    """End the actor's process, hung or not, and see it end: before, it might still answer."""
    import ray

    ray.kill(handle, no_restart=False)
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            ray.get(handle.ready.remote(), timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.RayError:
            return
        time.sleep(0.05)


class Fleet:
    """Sends weights to every engine that is there, and brings the others back with the next weights.

    Args:
        engines: in engine order; all hold policy version 0, the model folder's own weights.
        connect: meets a sequence of actor handles; needed again whenever an engine came or went.
        push: sends a policy version to them, `EngineLostError` where one of them is lost; None: there is no learner.
        start_timeout_s: longest wait for an engine to load again.
        generate_timeout_s: longest wait for the sampling in flight.
    """

    def __init__(
        self,
        engines: Sequence[Replica],
        *,
        connect: "Callable[[list[ActorHandle]], None] | None" = None,
        push: Callable[[int], SyncReport | None] | None = None,
        start_timeout_s: float,
        generate_timeout_s: float,
    ) -> None:
        self.engines = list(engines)
        self.version = 0
        self._connect = connect
        self._push = push
        self._start_timeout_s = start_timeout_s
        self._generate_timeout_s = generate_timeout_s
        self._connected: list[tuple[str, int]] = []
        self._sampling = self._ended = 0
        self._changed = threading.Condition()
        for engine in self.engines:
            engine.give(0, engine.life)

    def engine_for(self, share: int, policy_version: int) -> Replica:
        """The engine that samples this share of a batch: its own where that serves, another where not.

        Raises:
            EnginesLost: none holds this version.
        """
        if self.engines[share].holds == policy_version:
            return self.engines[share]
        serving = [engine for engine in self.engines if engine.holds == policy_version]
        if not serving:
            raise EnginesLost(f"rollout engines: none is left that holds policy version {policy_version}")
        return serving[share % len(serving)]

    def push_weights(self, policy_version: int) -> SyncReport | None:
        """Give every engine that is there these weights; waits for one when all are lost.

        Sampling in flight is finished first: what an engine loses on the way can still be made again elsewhere.

        Raises:
            ComponentLost: an engine did not come back in time.
            RunFailed: too many failures.
            WeightSyncError: the engines refuse the weights.
        """
        self._wait_for_sampling()
        while True:
            members = [(engine, engine.life) for engine in self._present()]
            try:
                report = self._send(members, policy_version)
            except EngineLostError as error:
                engine, life = members[error.engine]
                self._connected = []
                engine.died(life, error, end=not error.died)
                continue
            for engine, life in members:
                engine.give(policy_version, life)
            self.version = policy_version
            return report

    def sleep(self) -> None:
        """Have every engine leave its GPU to the learner; the next call to it wakes it up.

        One that is away is waited for: it would load into the memory that the learner is about to take.

        Raises:
            ComponentLost: an engine did not come back in time.
            RunFailed: too many failures.
        """
        self._wait_for_sampling()
        awake = self.engines
        while awake:
            awake = self._put_to_sleep(awake)

    def with_engines(self, policy_version: int, work: Callable[[], Result]) -> Result:
        """Do `work`, which needs engines of this version, again whenever it ended for want of one.

        Raises:
            ComponentLost: the version is not the current one: those weights are gone.
        """
        while True:
            try:
                return work()
            except EnginesLost as error:
                if policy_version != self.version:
                    raise ComponentLost(f"{error}, and the learner has newer weights") from None
                self.push_weights(policy_version)

    def begin_sampling(self) -> None:
        """No weights are sent until as many ends as begins were told."""
        with self._changed:
            self._sampling += 1

    def end_sampling(self) -> None:
        with self._changed:
            self._sampling -= 1
            self._ended += 1
            self._changed.notify_all()

    def _wait_for_sampling(self) -> None:
        """Until nothing samples: each batch in flight has its own deadline, so one must end within it."""
        with self._changed:
            while self._sampling:
                ended = self._ended
                if not self._changed.wait_for(partial(self._has_ended, ended), self._generate_timeout_s):
                    raise ComponentLost(f"rollout engines: still sampling after {self._generate_timeout_s:g} s")

    def _has_ended(self, earlier: int) -> bool:
        return self._ended > earlier

    def _present(self) -> list[Replica]:
        import ray

        deadline = time.monotonic() + self._start_timeout_s
        while True:
            present = [engine for engine in self.engines if engine.is_back()]
            for engine in self.engines:
                if engine.away_s > self._start_timeout_s:
                    raise ComponentLost(f"{engine.name}: not back within {self._start_timeout_s:g} s")
            if present:
                return present
            returning = [engine.returning for engine in self.engines]
            if not ray.wait(returning, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))[0]:
                raise ComponentLost(f"rollout engines: none came back within {self._start_timeout_s:g} s")

    def _put_to_sleep(self, engines: Sequence[Replica]) -> list[Replica]:
        """Those that died or hung on the way, and are loaded again."""
        import ray

        for engine in engines:
            if not engine.is_back(max(0.0, self._start_timeout_s - engine.away_s)):
                raise ComponentLost(f"{engine.name}: not back within {self._start_timeout_s:g} s")
        deadline = time.monotonic() + self._start_timeout_s
        lost = []
        for engine, (life, asleep) in [(engine, engine.call("sleep")) for engine in engines]:
            try:
                ray.get(asleep, timeout=max(0.0, deadline - time.monotonic()))
            except losses() as error:
                engine.died(life, error)
                lost.append(engine)
            except ray.exceptions.GetTimeoutError as error:
                engine.died(life, error, end=True)
                lost.append(engine)
        return lost

    def _send(self, members: Sequence[tuple[Replica, int]], policy_version: int) -> SyncReport | None:
        if self._connect is None or self._push is None:
            return None  # what an engine loads by itself is all there is
        lives = [(engine.name, life) for engine, life in members]
        if lives != self._connected:
            self._connect([engine.handle for engine, _ in members])
            self._connected = lives
        return self._push(policy_version)
