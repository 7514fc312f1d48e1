"""Python files of a user's own, as modules: by path, so that no file of another name is found instead."""

import importlib.abc
import importlib.util
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from rewards.config import Panel
from rewards.judge_sections import PythonScorerConfig
from rewards.paths import is_file


class _Text(importlib.abc.ExecutionLoader):
    """Runs a text as the module in the file of this path, which need not be on this machine."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_source(self, fullname: str) -> str:
        return self._text


def load_file(path: str, text: str | None = None) -> ModuleType:
    """The module in a file, loaded once in a process; what lies beside it can be imported by it.

    Args:
        text: what the file holds, where it was read elsewhere; None: it is read.

    Raises:
        OSError, SyntaxError, UnicodeDecodeError: it cannot be read. And whatever its statements raise.
    """
    name = f"mi_epo_file_{zlib.crc32(path.encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, _Text(path, read(path) if text is None else text))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if (folder := os.path.dirname(os.path.abspath(path))) not in sys.path:
        sys.path.append(folder)  # last, so that nothing there is taken for what was found until now
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def read(path: str) -> str:
    """In the encoding that the file says it has, as Python reads it."""
    return importlib.util.decode_source(Path(path).read_bytes())


def files_of(panel: Panel) -> Mapping[str, str]:
    """Path -> text of the files that a panel's judges are functions of, for processes that cannot read them."""
    judges = [judge for objective in panel for judge in objective.single_judges]
    paths = {judge.function.rpartition(":")[0] for judge in judges if isinstance(judge, PythonScorerConfig)}
    return {path: read(path) for path in sorted(paths) if is_file(path)}
