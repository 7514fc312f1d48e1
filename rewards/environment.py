"""What processes of every room need: models and paths by their names, environment, seeds; what errors say and mean."""

import ctypes
import hashlib
import os
from pathlib import Path

MAX_MESSAGE_CHARS = 400
MAX_SEED = 2**31 - 1
"""Some random generators take 32 bits, and some seeds are the next ones of a run's."""
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def is_unicode(text: str) -> bool:
    """False for a lone surrogate, which JSON and command lines can hold, and no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def expanded_path(path: str) -> str:
    """The path with `~` as the home folder. Raises ValueError where the system can look nothing up by that name."""
    try:
        found = os.path.expanduser(path)
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):  # which whoever reads it says
        return found
    except (OSError, ValueError) as error:  # the latter: NUL, or half a character
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"must be a path that can be looked up, got {path!r:.100}: {reason}") from None
    return found


def expanded_folder(path: str) -> str:
    """As `expanded_path`, of a folder to write. Raises ValueError where there can be none of that name."""
    folder = expanded_path(path)
    if folder.startswith("~"):
        raise ValueError(f"must lie in the home folder of a user that there is, got {path!r:.100}")
    there = next(part for part in (Path(folder), *Path(folder).parents) if os.path.lexists(part))
    if not there.is_dir():
        raise ValueError(f"must be a folder, or one that can be made, got {path!r:.100}: {there} is no folder")
    return folder


def local_folder(model: str) -> Path | None:
    """The folder that the name of a model means, `~` expanded, whether it is there or not; None for a hub id.

    What can be no hub id is meant as a folder, so that no hub is ever asked for it.

    Example: local_folder("./models/start") -> Path("models/start"); local_folder("Qwen/Qwen3-8B") -> None
    """
    folder = os.path.expanduser(model)
    is_meant = model.startswith((".", "/", "~")) or os.path.exists(folder) or not _can_be_hub_id(model)
    return Path(folder) if is_meant else None


def _can_be_hub_id(model: str) -> bool:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except ValueError:
        return False
    return True


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


def whole_threads(num_cpus: float, threads: int | None = None) -> int:
    """Threads of a process: those asked for, or without any as many as CPUs are reserved, at least 1."""
    return threads or max(1, int(num_cpus))


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
