"""What a built miniature consists of, and the manifest that vouches for it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureAssets:
    """Example: `MiniatureAssets.at(Path("k2"), manifest).rewards["helpfulness"]` -> `k2/rewards/helpfulness`."""

    directory: Path
    policy: Path  # Hugging Face folder of the starting policy
    rewards: dict[str, Path]  # objective -> Hugging Face folder of its reward model, in the recipe's order
    train_prompts: Path  # JSONL, {"prompt": ...}
    heldout_prompts: Path
    manifest: dict[str, Any]

    @classmethod
    def at(cls, directory: Path, manifest: dict[str, Any]) -> "MiniatureAssets":
        return cls(
            directory=directory,
            policy=directory / "policy",
            rewards={name: directory / "rewards" / name for name in manifest["objectives"]},
            train_prompts=directory / "prompts" / "train.jsonl",
            heldout_prompts=directory / "prompts" / "heldout.jsonl",
            manifest=manifest,
        )


def checksums(directory: Path) -> dict[str, str]:
    """sha256 of every file below `directory` but the manifest, by relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    return {path.relative_to(directory).as_posix(): _sha256(path) for path in files}


def write_manifest(directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest, which must be the last file of a build, and returns it."""
    manifest = {**facts, "files": checksums(directory)}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None when there is none that can be read."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def damaged_files(directory: Path, manifest: dict[str, Any]) -> list[str]:
    """Files that are missing or no longer what the manifest says. Files it does not list are nobody's business."""
    return [name for name, expected in manifest["files"].items() if _sha256_or_none(directory / name) != expected]


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sha256_or_none(path: Path) -> str | None:
    try:
        return _sha256(path)
    except OSError:
        return None
