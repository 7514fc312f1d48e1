"""GPUs: what a card of a name has and does, which ones this machine has, and whether this environment can use them.

No torch and no CUDA: `nvidia-smi` is asked, once, with a deadline.
"""

import importlib.metadata
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.errors import BadInput

GIB = 2**30
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
ANSWER_S = 20.0
"""Longest wait for `nvidia-smi`, which takes seconds where no process keeps the driver loaded."""
OLDEST_DRIVER = {12: 525, 13: 580}
"""CUDA's major version -> the first driver branch that runs programs built for it (NVIDIA's CUDA toolkit release notes,
minor version compatibility)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Example: Card(name="H100 80GB", memory=85_520_809_984, flops=989e12, bandwidth=3.35e12)"""

    name: str
    memory: int
    """Bytes, as `nvidia-smi` tells them."""
    flops: float | None
    """Dense bfloat16 products a second, summed up in float32; None: not known."""
    bandwidth: float | None
    """Bytes a second from its memory; None: not known."""


def _card(name: str, mebibytes: int, teraflops: float, terabytes: float) -> Card:
    return Card(name=name, memory=mebibytes << 20, flops=teraflops * 1e12, bandwidth=terabytes * 1e12)


CARDS = {
    card.name: card
    for card in (
        _card("B200", 183_359, 2250, 8.0),
        _card("H200", 143_771, 989, 4.8),
        _card("H100 80GB", 81_559, 989, 3.35),
        _card("A100 80GB", 81_920, 312, 2.04),
        _card("A100 40GB", 40_960, 312, 1.55),
        _card("L40S", 46_068, 362, 0.864),
        _card("RTX 5090", 32_607, 209, 1.79),
        _card("RTX 4090", 24_564, 165, 1.01),
        _card("RTX 3090", 24_576, 71, 0.936),
        _card("L4", 23_034, 121, 0.30),
        _card("A10G", 23_028, 70, 0.60),
        _card("RTX A4000", 16_376, 77, 0.448),
    )
}
"""Peaks of NVIDIA's data sheets and architecture papers, without sparsity; H100 and H200 are the SXM boards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of a machine. Example: Gpu(name="NVIDIA H100 80GB HBM3", memory=85_520_809_984, driver="580.95.05")"""

    name: str
    memory: int
    """Bytes."""
    driver: str


def card_named(name: str) -> Card:
    """The first card whose name begins so, in capitals or not. Example: card_named("h100")

    Raises:
        BadInput: there is none.
    """
    found = next((card for card in CARDS.values() if card.name.lower().startswith(name.lower().strip())), None)
    if found is None or not name.strip():
        raise BadInput(f"--device: must be the beginning of one of {', '.join(CARDS)}, got {name!r}")
    return found


def _ask_driver() -> str:
    return subprocess.run(QUERY, capture_output=True, text=True, timeout=ANSWER_S, check=True).stdout


def installed_gpus(ask: Callable[[], str] = _ask_driver) -> tuple[Gpu, ...]:
    """The GPUs of this machine, those hidden from this process included; none where the driver does not answer."""
    try:
        rows = [[cell.strip() for cell in line.split(",")] for line in ask().splitlines() if line.strip()]
        return tuple(Gpu(name=name, memory=int(memory) << 20, driver=driver) for name, memory, driver in rows)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def card_of(gpus: Sequence[Gpu], planned: str) -> Card:
    """The smallest of the GPUs, with what is known of its kind; without any, the card of the name `planned`."""
    if not gpus:
        return CARDS[planned]
    smallest = min(gpus, key=lambda gpu: gpu.memory)
    words = set(re.split(r"[ -]", smallest.name))
    kind = next((card for name, card in CARDS.items() if words.issuperset(name.split())), None)
    return Card(
        name=smallest.name,
        memory=smallest.memory,
        flops=kind.flops if kind else None,
        bandwidth=kind.bandwidth if kind else None,
    )


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def unusable(gpus: Sequence[Gpu], version: Callable[[str], str | None] = installed_version) -> str | None:
    """Why the torch installed here cannot use these GPUs; None when nothing speaks against it.

    Args:
        version: package -> its version here. A torch for CUDA depends on the CUDA runtime it was built for.
    """
    torch = version("torch")
    if torch is not None and torch.endswith("+cpu"):
        return f"torch {torch} is built without CUDA; `make setup-gpu` installs the one with it"
    runtime = version("nvidia-cuda-runtime")
    oldest = OLDEST_DRIVER.get(int(runtime.partition(".")[0])) if runtime else None
    for gpu in gpus:
        if oldest is not None and int(gpu.driver.partition(".")[0]) < oldest:
            return f"torch {torch} is built for CUDA {runtime}, which needs a driver from {oldest} on, got {gpu.driver}"
    return None
