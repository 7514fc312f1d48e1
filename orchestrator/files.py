"""Files: lines of JSON, written strictly and read back; texts replaced whole; locks. And aligned cells, to be read."""

import contextlib
import fcntl
import gzip
import io
import json
import math
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from orchestrator.errors import BadInput

Record = dict[str, Any]
GZIP = b"\x1f\x8b"
"""How every gzipped file begins."""
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON leaves as it is within a text, where others end a line (as str.splitlines() does) or UTF-8 has no bytes."""


def json_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON, for every reader of lines and of UTF-8: NaN and infinities become null."""
    line = json.dumps(finite(record), ensure_ascii=False, allow_nan=False)
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n"


def finite(value: Any) -> Any:
    """The same value with null for what JSON cannot say, and plain numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[Record]:
    """Records of a JSONL file, none where there is no file; a last line that a killed run left unfinished is ignored.

    Raises:
        BadInput: another line is no JSON; names file and line.
    """
    if not path.is_file():
        return []
    lines = [(number, line) for number, line in enumerate(text_lines(path), start=1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < lines[-1][0]:
                raise BadInput(f"{path}:{number}: is no JSON: {error.msg}") from None
    return records


def keep_lines(path: Path, keep: Callable[[Record], bool]) -> None:
    """Drop what stands in a JSONL file from the first record on that `keep` refuses, or that a kill cut short."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = []
    for line in whole:
        try:
            if not keep(json.loads(line)):
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    replace_text(path, "".join(kept))


def open_file(path: Path) -> io.BufferedReader:
    """A file of the user's, to be read as bytes.

    Raises:
        BadInput: it cannot be opened, or is none: a pipe may never begin, and a device never end.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
        if is_file:
            return path.open("rb")
    except (OSError, ValueError) as error:  # the latter: no path at all
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    raise BadInput(f"{path}: must be a file, got a {'folder' if path.is_dir() else 'pipe or a device'}")


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text, gzipped or not, each without its end: that of Unix, Windows or the old Macintosh.

    The other characters that Unicode calls line ends (U+2028, U+0085, ...) end none: texts may hold them.

    Raises:
        BadInput: it cannot be read, or is not UTF-8.
    """
    try:
        with open_file(path) as file:
            content = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(GZIP) else file
            with io.TextIOWrapper(content, encoding="utf-8-sig") as lines:
                yield from (line.removesuffix("\n") for line in lines)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: must be UTF-8 text: {error.reason} at byte {error.start}") from None


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log, whatever bytes it holds; fewer where it has fewer."""
    return log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-count:]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file, with the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(json_line, records))


def replace_text(file: Path, text: str) -> None:
    """Write a file so that whoever looks sees the old text or the new one, also after a kill."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def as_text(table: Sequence[Sequence[str]]) -> str:
    """A table's rows as lines, its columns aligned."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, late: str) -> Iterator[IO[str]]:
    """Hold `path`, made where there is none, until the end of the block; one process at a time, however it ends.

    Yields the open file: a child process that inherits it (`pass_fds`) holds the lock as well, until it ends.

    Raises:
        BadInput: the folder cannot be written, or another process held the lock for `timeout_s`, which `late` says.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(late) from None
                time.sleep(0.5)
        yield file
