"""What a model folder holds, read from its JSON and from the headers of its weight files; nothing of it is loaded.

No number in a header is believed before it has been compared with the size of its file.
"""

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.environment import local_folder, one_line
from rewards.strict_json import parse_json

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""
POINTER = b"version https://git-lfs"
POINTER_RULE = "is a Git LFS pointer, not the file itself (`git lfs pull` in that folder fetches it)"
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Of the dtypes whose size is checked against the file; others are taken as they are."""
PIECE_BYTES = 1 << 20


class ModelError(ValueError):
    """A model that cannot be used: one line with the folder or file, the rule and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """Example: TensorHeader(file=Path("model.safetensors"), dtype="F32", shape=(100, 64), begin=1024, end=26624)"""

    file: Path
    dtype: str
    """As safetensors writes it."""
    shape: tuple[int, ...]
    begin: int
    """Of its bytes in the file, up to `end`."""
    end: int


def known_folder(model: str) -> Path | None:
    """The folder that a model's name means, or where the Hugging Face cache has it; None: nothing is here yet."""
    folder = local_folder(model)
    if folder is not None:
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelError: no such file, or no JSON object."""
    try:
        content = path.read_bytes()
        tree = parse_json(content)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        reason = POINTER_RULE if content.startswith(POINTER) else f"is not valid JSON: {one_line(error)}"
        raise ModelError(f"{path}: {reason}") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{path}: must hold a JSON object, got {type(tree).__name__}")
    return tree


def refuse_code(folder: Path) -> None:
    """Raises ModelError: the folder names code of its own, or a kernel of a hub, to be run when it is loaded."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        settings = read_json(path) if path.is_file() else {}
        if code := settings.get("auto_map"):
            named = ", ".join(map(str, code)) if isinstance(code, dict | list) else repr(code)
            raise ModelError(
                f"{path}: must name no code, which is never run here, got auto_map for {named:.100} "
                "(without that entry transformers' own classes are loaded)"
            )
        for key in ("attn_implementation", "_attn_implementation"):
            if "/" in str(kernel := settings.get(key, "")):
                raise ModelError(
                    f"{path}: {key} must be no kernel of a hub, which is never run here, got {kernel!r:.100}"
                )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model, in the order of their names; empty: the folder has none.

    An index decides; other files beside those it names are no part of the model.

    Raises:
        ModelError: a broken index, one that names a file that is not there, or `model.safetensors` beside an index that
            does not name it: transformers would load the one, vLLM the others.
    """
    if not (folder / INDEX).is_file():
        return [folder / WHOLE] if (folder / WHOLE).is_file() else []
    names = sorted(set(_weight_map(folder).values()))
    for name in names:
        if Path(name).name != name or not os.path.isfile(folder / name):
            raise ModelError(f"{folder / INDEX}: must name files of its folder, got {name!r:.100}, which is not there")
    if (folder / WHOLE).is_file() and WHOLE not in names:
        raise ModelError(f"{folder}: must hold {WHOLE} or an index of other files, got both ({INDEX})")
    return [folder / name for name in names]


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the model by its name, in the order of the files; empty: it has no safetensors files.

    Raises:
        ModelError: what `weight_files` raises; a file that is none, is cut short, or lacks what the index says.
    """
    found: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        found |= _read_header(file)
    if (folder / INDEX).is_file():
        for name, file_name in _weight_map(folder).items():
            if name not in found or found[name].file.name != file_name:
                raise ModelError(f"{folder / file_name}: must hold {name!r}, as {INDEX} says")
    return found


def require_weights(folder: Path) -> dict[str, TensorHeader]:
    """As `tensor_headers`; empty only where torch's own files hold the model.

    Raises:
        ModelError: no weights at all, or a Git LFS pointer in their place.
    """
    headers = tensor_headers(folder)
    if not headers:
        torch_files = [folder / name for name in TORCH_FILES if (folder / name).is_file()]
        if not torch_files:
            raise ModelError(f"{folder}: holds no weights (no {WHOLE}, and no index of such files)")
        for file in (torch_files[0], *sorted(folder.glob("pytorch_model*.bin"))):
            refuse_pointer(file)
    return headers


def same_values(one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two tensors are the same to the byte, read piece by piece."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        sizes = (min(PIECE_BYTES, one.end - start) for start in range(one.begin, one.end, PIECE_BYTES))
        return all(first.read(size) == second.read(size) for size in sizes)


def refuse_pointer(file: Path) -> None:
    """Raises ModelError: Git LFS left a pointer in the place of the file, which may as well not be there."""
    if file.is_file():
        with file.open("rb") as content:
            if content.read(len(POINTER)) == POINTER:
                raise ModelError(f"{file}: {POINTER_RULE}")


def refuse_difference(
    model: object,
    *,
    missing: Collection[str],
    unexpected: Collection[str],
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raises ModelError where files and configuration differ. `misshapen`: name -> (shape in the file, its place)."""
    if missing:
        raise ModelError(f"{model}: holds no trained weights for {_some(missing)}")
    if misshapen:
        name = min(misshapen)
        stored, wanted = (tuple(shape) for shape in misshapen[name])
        more = f" (and {len(misshapen) - 1} more)" if len(misshapen) > 1 else ""
        raise ModelError(f"{model}: {name} must have the shape {wanted} of its configuration, got {stored}{more}")
    if unexpected:
        raise ModelError(f"{model}: has weights that its class has no place for: {_some(unexpected)}")


def _some(names: Collection[str]) -> str:
    first, more = sorted(names)[:3], len(names) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _weight_map(folder: Path) -> dict[str, str]:
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{folder / INDEX}: must hold a weight_map of tensor names and files")
    return names


def _read_header(file: Path) -> dict[str, TensorHeader]:
    try:
        with file.open("rb") as content:
            start, size = content.read(8), file.stat().st_size
            length = int.from_bytes(start, "little")
            if POINTER.startswith(start) and len(start) == 8:
                raise ModelError(f"{file}: {POINTER_RULE}")
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ModelError(f"{file}: is no safetensors file, or cut short ({size} bytes)")
            entries = json.loads(content.read(length))
        data = 8 + length
        found = {
            str(name): TensorHeader(
                file=file,
                dtype=str(entry["dtype"]),
                shape=tuple(map(int, entry["shape"])),
                begin=data + int(entry["data_offsets"][0]),
                end=data + int(entry["data_offsets"][1]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{file}: is no safetensors file (its header describes no tensors)") from None
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: is no safetensors file (its header is no JSON)") from None
    for name, header in found.items():
        given = header.end - header.begin
        wanted = math.prod(header.shape) * ITEM_BYTES.get(header.dtype, 0) or given
        if not data <= header.begin <= header.end <= size or wanted != given or any(side < 0 for side in header.shape):
            raise ModelError(
                f"{file}: is cut short or damaged: {name} of shape {header.shape} must lie within {size - data} bytes, "
                f"got {header.begin - data} to {header.end - data}"
            )
    return found
