"""What processes of every room need: models by their names, their environment, seeds; what errors say and mean."""

import ctypes
import hashlib
import os
from pathlib import Path

MAX_MESSAGE_CHARS = 400
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
    folder = Path(os.path.expanduser(model))
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


def process_environment(model: str | None = None, *, threads: int | None, num_gpus: float) -> dict[str, str]:
    """Set before anything is imported there.

    Args:
        model: Hugging Face folder (then the process stays off the hub) or hub id; None: not known.
        threads: of its CPU kernels; None: as many as they take.
        num_gpus: reserved for it. With none it must not see those of its node, which Ray would leave visible: torch
            would take memory there that nobody has planned.
    """
    env = dict(QUIET)
    if not num_gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    folder = None if model is None else local_folder(model)
    if folder is not None and folder.is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    return env


def whole_threads(num_cpus: float) -> int:
    """Threads of a process with so many CPUs reserved, at least 1."""
    return max(1, int(num_cpus))


def native_dtype(flags: Path = Path("/proc/cpuinfo")) -> str:
    """`bfloat16` where this machine's processor multiplies it itself (AMX or AVX512-BF16), else `float32`.

    On two cores with AMX a forward and backward pass of 135 M parameters is 1.8 times as fast in bfloat16, vLLM 1.9
    times; on processors without it bfloat16 is the slower one.
    """
    try:
        known = flags.read_text(encoding="utf-8")
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in known or "avx512_bf16" in known else "float32"


def one_line(error: BaseException) -> str:
    """The message of an error on one line, short enough for a terminal; the class name when it has none."""
    return _shortened(" ".join(str(error).split())) or type(error).__name__


def describe(error: BaseException) -> str:
    """Class name and first line of an error of somebody else's code, whose further lines may be a long story."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {_shortened(lines[0])}" if lines else kind


def is_device_failure(error: BaseException | None) -> bool:
    """Whether torch lost its device on the way to this error: every later call of the process fails then as well."""
    # by name: the driver and light judges load no torch
    while error is not None and type(error).__name__ != "AcceleratorError":
        error = error.__cause__
    return error is not None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 3] + "..."


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on the written form of all parts, and on nothing else.

    Hashed, not added: neighbouring parts (request 7 and 8, response 0 and 1) must not share a random stream.

    Example: derive_seed(7, 0) -> 5751740483655848561
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def trim_heap() -> None:
    """Give memory that this process has freed back to the system, where the C library is glibc.

    Its heaps keep freed blocks below a threshold that grows to 32 MiB. After passes of different sizes these are
    gigabytes, which the other processes of a small machine lack.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
