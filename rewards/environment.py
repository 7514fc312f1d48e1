"""The processes of a run that load a model: what is in their environment, and whether their device failed."""

from pathlib import Path

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def process_environment(model: str | None = None, *, threads: int | None) -> dict[str, str]:
    """Set before anything is imported there.

    Args:
        model: Hugging Face folder (then the process stays off the hub) or hub id; None: not known.
        threads: of its CPU kernels; None: as many as they take.
    """
    env = dict(QUIET)
    if model is not None and Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    return env


def is_device_failure(error: BaseException | None) -> bool:
    """Whether torch lost its device on the way to this error: every later call of the process fails then as well."""
    # by name: the driver and light judges load no torch
    while error is not None and type(error).__name__ != "AcceleratorError":
        error = error.__cause__
    return error is not None


def whole_threads(num_cpus: float) -> int:
    """Threads of a process with so many CPUs reserved, at least 1."""
    return max(1, int(num_cpus))
