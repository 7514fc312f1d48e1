"""The models that a recipe names, and the environment of the processes that load them."""

import os
from pathlib import Path

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def local_folder(model: str) -> Path | None:
    """The folder that the name of a model means, `~` expanded, whether it is there or not; None for a hub id.

    Example: local_folder("./models/start") -> Path("models/start"); local_folder("Qwen/Qwen3-8B") -> None
    """
    folder = Path(model).expanduser()
    # a hub id has one slash at most
    is_meant = model.startswith((".", "/", "~")) or model.count("/") > 1 or folder.exists()
    return folder if is_meant else None


def model_source(model: str) -> str:
    """What loaders are given: the folder as it is named, `~` expanded, or the hub id."""
    return os.path.expanduser(model)


def model_folder(model: str) -> Path:
    """The folder itself, or where the Hugging Face cache keeps this hub id, which must have been loaded before."""
    folder = local_folder(model)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, local_files_only=True))


def process_environment(model: str | None = None, *, threads: int | None) -> dict[str, str]:
    """Set before anything is imported there.

    Args:
        model: Hugging Face folder (then the process stays off the hub) or hub id; None: not known.
        threads: of its CPU kernels; None: as many as they take.
    """
    env = dict(QUIET)
    folder = None if model is None else local_folder(model)
    if folder is not None and folder.is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    return env


def whole_threads(num_cpus: float) -> int:
    """Threads of a process with so many CPUs reserved, at least 1."""
    return max(1, int(num_cpus))
