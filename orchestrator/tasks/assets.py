"""Folders that are built once: complete or absent, checksummed, rebuilt when damaged or built from other settings.

A folder is described by its manifest.json: the settings it was built from, the sha256 of every file, and what the build
reported. It appears by one rename, and a lock keeps two builds of one folder apart.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from learner.types import sha256_of
from orchestrator.errors import BadInput
from orchestrator.files import locked

MANIFEST = "manifest.json"
LOCK_TIMEOUT_S = 3600.0
"""Longest wait for another process that builds the same folder."""


def build_once(
    directory: Path,
    settings: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    *,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Make sure that `directory` holds what `build` makes from `settings`; returns its manifest.

    Args:
        settings: JSON-serialisable; any change means another build.
        build: fills an empty folder and returns a JSON-serialisable report for the manifest.

    Raises:
        BadInput: the folder cannot be written, or holds something that no build made.
    """
    digest = settings_digest(settings)
    late = f"{directory}: another process has been building it for {LOCK_TIMEOUT_S:g} s"
    with locked(directory.parent / f".{directory.name}.lock", timeout_s=LOCK_TIMEOUT_S, late=late):
        reason = why_not_usable(directory, digest)
        if reason is None:
            return read_manifest(directory)
        if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
            raise BadInput(
                f"{directory}: holds files but no {MANIFEST}, so it is not a built folder; choose another one"
            )
        if directory.exists():
            progress(f"{directory}: {reason}; building it again")
        for orphan in directory.parent.glob(_partial_name(directory) + "*"):  # of a build that was killed
            shutil.rmtree(orphan, ignore_errors=True)
        with whole_folder(directory) as partial:
            report = dict(build(partial))
            manifest = {
                "settings": settings,
                "settings_digest": digest,
                "files": file_digests(partial),
                "report": report,
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if directory.exists():
                shutil.rmtree(directory)
        return manifest


@contextlib.contextmanager
def whole_folder(directory: Path) -> Iterator[Path]:
    """An empty folder beside `directory`, which takes its place when the block ends without an error.

    Raises:
        BadInput: the folder cannot be written, or something is in its place by then.
    """
    partial = None
    try:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=_partial_name(directory), dir=directory.parent))
        except OSError as error:
            raise BadInput(f"{directory}: cannot be written: {error.strerror}") from None
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(directory)
        except OSError as error:
            raise BadInput(f"{directory}: cannot be written: {error.strerror}") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _partial_name(directory: Path) -> str:
    return f".{directory.name}-building-"


def why_not_usable(directory: Path, digest: str) -> str | None:
    """None when the folder is complete, undamaged and built from these settings."""
    try:
        manifest = read_manifest(directory)
    except (OSError, ValueError):
        return "not built"
    if manifest.get("settings_digest") != digest:
        return "was built from other settings"
    found = file_digests(directory)
    for name, expected in manifest["files"].items():
        if found.get(name) != expected:
            return f"{name} is {'damaged' if name in found else 'missing'}"
    return None


def read_manifest(directory: Path) -> dict[str, Any]:
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{directory / MANIFEST}: must describe a built folder")
    return manifest


def settings_digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def code_digest(*packages: str) -> str:
    """sha256 over the Python sources of packages of this folder: for settings, so that changed code builds again."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for package in packages for path in (here / package).rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file but the manifest."""
    return {
        str(path.relative_to(directory)): sha256_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
