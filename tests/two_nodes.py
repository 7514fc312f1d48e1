"""A Ray cluster of two nodes with addresses of their own: two network namespaces and a cable between them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.chaos import PROCESS_OF
from tests.whole_runs import REPOSITORY, command, steps_done

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 6399
START_TIMEOUT_S = 300
ANSWER_TIMEOUT_S = 60  # one question; it may be stuck on a head that was not there when it began
STOP_TIMEOUT_S = 60
LEARNER_AT_HEAD = "learner.node_labels={pool: learner}"
ENGINES_AT_WORKER = "rollout.node_labels={pool: rollout}"


def unavailable() -> str | None:
    """Why there can be none here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        done = subprocess.run(
            ["ip", "netns", "add", f"probe-{os.getpid()}"], capture_output=True, text=True, timeout=10
        )
    except FileNotFoundError:
        return "network namespaces need the command `ip`"
    if done.returncode:
        return f"no network namespace can be made here: {done.stderr.strip()}"
    ip("netns", "del", f"probe-{os.getpid()}")
    return None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10, capture_output=True)


class Namespace:
    """A network of its own, and the Ray node in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.node: subprocess.Popen[bytes] | None = None
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")

    def command(self, *arguments: object) -> list[str]:
        """The command as it is run inside."""
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]

    def start_node(self, log: Path, *arguments: str, cpus: int, labels: Mapping[str, str]) -> None:
        named = ",".join(f"{key}={value}" for key, value in labels.items())
        with log.open("wb") as file:
            self.node = subprocess.Popen(
                self.command(
                    *(RAY, "start", "--block", f"--node-ip-address={self.address}", f"--num-cpus={cpus}"),
                    *(f"--labels={named}", "--object-store-memory=200000000", *arguments),
                ),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def holds(self, process: psutil.Process) -> bool:
        """Whether the process lives in this network."""
        assert self.node is not None
        return os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink(f"/proc/{self.node.pid}/ns/net")

    def close(self) -> None:
        if self.node is not None:
            self.node.terminate()
            try:
                self.node.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.node.kill()
        ip("netns", "del", self.name)


def network_of(process: int) -> str:
    """The first three numbers of its addresses.

    Of its own for each test process: `ray start --head` refuses an address at which a head runs anywhere on
    the machine, and it looks at the command lines of all processes, not at its own network's alone.
    """
    return f"10.{process >> 8 & 255}.{process & 255}"


class TwoNetworks:
    """Head and worker node; the first label `pool` tells them apart: `learner` and `rollout`."""

    def __init__(self, folder: Path, *, cpus: tuple[int, int]) -> None:
        self.cpus = cpus
        self.folder = folder
        network = network_of(os.getpid())
        self.head = Namespace(f"mi-epo-a-{os.getpid()}", f"{network}.1")
        self.worker = Namespace(f"mi-epo-b-{os.getpid()}", f"{network}.2")
        cable = {self.head: f"mea{os.getpid()}", self.worker: f"meb{os.getpid()}"}
        ip("link", "add", cable[self.head], "type", "veth", "peer", "name", cable[self.worker])
        for end, device in cable.items():
            ip("link", "set", device, "netns", end.name)
            ip("-n", end.name, "link", "set", device, "name", "cable0")
            ip("-n", end.name, "addr", "add", f"{end.address}/24", "dev", "cable0")
            ip("-n", end.name, "link", "set", "cable0", "up")

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def start(self) -> None:
        """Raises AssertionError when the nodes do not meet in time."""
        head = ("--head", f"--port={PORT}", "--include-dashboard=false")
        self.head.start_node(self.folder / "head.log", *head, cpus=self.cpus[0], labels={"pool": "learner"})
        self._wait_for_head()
        joined = (f"--address={self.address}",)
        self.worker.start_node(self.folder / "worker.log", *joined, cpus=self.cpus[1], labels={"pool": "rollout"})
        self._wait_for_nodes(2)

    def carried_bytes(self) -> int:
        """What the worker node has received through the cable."""
        read = self.worker.command("cat", "/sys/class/net/cable0/statistics/rx_bytes")
        return int(subprocess.run(read, check=True, capture_output=True, text=True, timeout=10).stdout)

    def close(self) -> None:
        self.worker.close()
        self.head.close()

    def _wait_for_head(self) -> None:
        """Until its port answers; Ray's own client, which comes next, may not notice one that comes up late."""
        knock = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
        deadline = time.monotonic() + START_TIMEOUT_S
        asked = self.head.command(sys.executable, "-S", "-c", knock, self.head.address, PORT)
        while subprocess.run(asked, capture_output=True, timeout=ANSWER_TIMEOUT_S).returncode:
            assert time.monotonic() < deadline, (self.folder / "head.log").read_text()
            time.sleep(0.5)

    def _wait_for_nodes(self, count: int) -> None:
        ask = "import ray, sys; ray.init(address=sys.argv[1], logging_level='error'); print(len(ray.nodes()))"
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            asked = self.head.command(sys.executable, "-c", ask, self.address)
            try:
                done = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
                said = done.stderr
                if done.returncode == 0 and int(done.stdout.split()[-1]) >= count:
                    return
            except subprocess.TimeoutExpired:
                said = f"no answer within {ANSWER_TIMEOUT_S} s"
            logs = "\n".join(log.read_text() for log in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < deadline, f"no {count} nodes within {START_TIMEOUT_S} s\n{said}\n{logs}"
            time.sleep(1)


@contextlib.contextmanager
def two_networks(folder: Path, *, cpus: tuple[int, int]) -> Iterator[TwoNetworks]:
    """Both nodes, started; the test is skipped where there can be none."""
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    networks = TwoNetworks(folder, cpus=cpus)
    try:
        networks.start()
        yield networks
    finally:
        networks.close()


def train_on_two(networks: TwoNetworks, recipe: Path, run: Path, *overrides: str) -> dict[str, list[bool]]:
    """Where the actors were seen: role -> for each, whether it is the head's."""
    asked = networks.head.command(*command("train", recipe, *overrides, "--run-dir", run))
    process = subprocess.Popen(asked, cwd=REPOSITORY, env={**os.environ, "RAY_ADDRESS": networks.address})
    places: dict[str, list[bool]] = {}
    try:
        while process.poll() is None:
            if not places and steps_done(run):
                places = seen(networks)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    return places


def seen(networks: TwoNetworks) -> dict[str, list[bool]]:
    places: dict[str, list[bool]] = {role: [] for role in PROCESS_OF}
    for node in (networks.head, networks.worker):
        assert node.node is not None
        for process in psutil.Process(node.node.pid).children(recursive=True):
            for role, title in PROCESS_OF.items():
                if title in " ".join(process.cmdline()):
                    places[role].append(networks.head.holds(process))
    return places
