"""Kill or stop parts of a run at seeded random moments and look whether it ends as the undisturbed one.

The victims are found among the children of this cluster's own Ray nodes, never by name on the machine.
"""

import dataclasses
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.whole_runs import REPOSITORY, steps_done

PROCESS_OF = {"rollout": "ray::RolloutActor", "reward": "ray::RewardActor", "learner": "ray::LearnerWorker"}
KINDS = (
    *((role, "SIGKILL") for role in ("driver", "rollout", "reward", "learner") for _ in range(2)),
    *((role, "SIGSTOP") for role in PROCESS_OF),
    ("node", "SIGKILL"),
)
"""What is drawn from: each kill twice as often as a stop, or as a node with all that is on it."""
MARGIN = 10
"""Steps that must be left for a kill to be followed by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Example: Kill(role="rollout", signal="SIGKILL", after_steps=3, delay_s=0.4)"""

    role: str
    signal: str
    after_steps: int  # completed ones since the kill before
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Example: Outcome(kill=Kill(...), run="run-0", at_step=7, seconds=11.2, seconds_to_second=12.0, given_again=0)"""

    kill: Kill
    run: str
    at_step: int
    seconds: float  # from the signal to the next completed step
    seconds_to_second: float  # and to the one after: the first may have been past the part that was hit
    given_again: int  # times the command had to be given again

    def __str__(self) -> str:
        again = "" if not self.given_again else f", command given again {self.given_again} x"
        return (
            f"{self.run} step {self.at_step:3d}  {self.kill.signal} {self.kill.role:8s} "
            f"next steps after {self.seconds:5.1f} and {self.seconds_to_second:5.1f} s{again}"
        )


def draw_kills(count: int, seed: int, kinds: Sequence[tuple[str, str]] = KINDS) -> list[Kill]:
    """Shuffled rounds through all kinds, each at a moment of its own."""
    rng = random.Random(seed)
    order: list[tuple[str, str]] = []
    while len(order) < count:
        order += rng.sample(kinds, len(kinds))
    return [
        Kill(role=role, signal=name, after_steps=rng.randint(2, 4), delay_s=rng.uniform(0, 1))
        for role, name in order[:count]
    ]


class TwoNodes:
    """A Ray cluster of two nodes on this machine; the second one can be lost and replaced."""

    def __init__(self, cpus_per_node: int) -> None:
        from ray.cluster_utils import Cluster

        self._arguments: dict[str, Any] = {"num_cpus": cpus_per_node, "object_store_memory": 200 << 20}
        head = {**self._arguments, "include_dashboard": False}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(**self._arguments)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def pids(self, role: str) -> list[int]:
        found = []
        for node in (self.cluster.head_node, self.second):
            raylet = node.all_processes["raylet"][0].process.pid
            for process in psutil.Process(raylet).children(recursive=True):
                title = " ".join(process.cmdline()) if process.is_running() else ""
                if PROCESS_OF[role] in title and process.status() != psutil.STATUS_STOPPED:
                    found.append(process.pid)
        return sorted(found)

    def replace_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(**self._arguments)

    def close(self) -> None:
        self.cluster.shutdown()


class Victim:
    """A command that is given again, unchanged, whenever it ends before its run is finished."""

    def __init__(self, asked: list[str], log: Path, environment: dict[str, str]) -> None:
        self.asked = asked
        self.log = log
        self.environment = environment
        self.starts = 0
        self.give()

    def give(self) -> None:
        self.starts += 1
        with self.log.open("a") as log:
            log.write(f"--- start {self.starts}\n")
            log.flush()
            self.process = subprocess.Popen(
                self.asked, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, env=self.environment
            )

    def look(self) -> bool:
        """Whether it is finished; gives it again when it ended otherwise."""
        code = self.process.poll()
        if code == 0:
            return True
        if code is not None:
            self.give()
        return False

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def disturb(
    asked: list[str], run: Path, kills: list[Kill], nodes: TwoNodes, *, steps: int, deadline_s: float
) -> list[Outcome]:
    """One run under as many kills, in order, as fit before its end; they are taken from the list.

    Raises:
        AssertionError: nothing happened for `deadline_s`.
    """
    rng = random.Random(str(kills))
    outcomes = []
    victim = Victim(asked, run.with_suffix(".log"), {**os.environ, "RAY_ADDRESS": nodes.address})
    try:
        while kills and steps_done(run) + kills[0].after_steps < steps - MARGIN:
            kill = kills.pop(0)
            target = steps_done(run) + kill.after_steps
            wait_for(reached(run, target), victim, deadline_s, f"step {target} before {kill}")
            time.sleep(kill.delay_s)
            at_step, starts, started = steps_done(run), victim.starts, time.monotonic()
            strike(kill, victim, nodes, rng)
            waits = []
            for which in ("a step", "a second step"):
                wait_for(next_step(run), victim, deadline_s, f"{which} after {kill}")
                waits.append(time.monotonic() - started)
            outcomes.append(
                Outcome(
                    kill=kill,
                    run=run.name,
                    at_step=at_step,
                    seconds=waits[0],
                    seconds_to_second=waits[1],
                    given_again=victim.starts - starts,
                )
            )
            print(outcomes[-1], flush=True)
            again = 1 if kill.role == "driver" else 0
            assert outcomes[-1].given_again == again, f"{outcomes[-1]}:\n{victim.log.read_text()[-3000:]}"
        wait_for(lambda: victim.process.poll() == 0, victim, deadline_s, "the end")
        drivers = sum(outcome.kill.role == "driver" for outcome in outcomes)
        assert victim.starts == 1 + drivers, (
            f"the command was given {victim.starts} times:\n{victim.log.read_text()[-3000:]}"
        )
    finally:
        victim.end()
    return outcomes


def strike(kill: Kill, victim: Victim, nodes: TwoNodes, rng: random.Random) -> None:
    number = signal.Signals[kill.signal]
    if kill.role == "driver":
        victim.process.send_signal(number)
        victim.process.wait(timeout=30)
    elif kill.role == "node":
        nodes.replace_second()
    else:
        pids = nodes.pids(kill.role)
        assert pids, f"no process of role {kill.role} to kill"
        os.kill(rng.choice(pids), number)


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: steps_done(run) >= step


def next_step(run: Path) -> Callable[[], bool]:
    """Whether the run's steps grew since they were last looked at; they may have fallen back in between."""
    seen = [steps_done(run)]

    def grew() -> bool:
        before, seen[0] = seen[0], steps_done(run)
        return seen[0] > before

    return grew


def wait_for(condition: Callable[[], bool], victim: Victim, deadline_s: float, what: str) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        finished = victim.look()
        assert not finished or condition(), f"the run ended before {what}"
        assert time.monotonic() < deadline, f"no {what} within {deadline_s:g} s:\n{victim.log.read_text()[-3000:]}"
        time.sleep(0.1)


def as_table(outcomes: Sequence[Outcome]) -> str:
    worst = max(outcomes, key=lambda outcome: outcome.seconds_to_second)
    return "\n".join([*map(str, outcomes), f"{len(outcomes)} kills; the longest wait: {dataclasses.asdict(worst)}"])
