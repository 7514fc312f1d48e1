"""What the learner answers and leaves, and its errors; what enters it is in `learner.examples`. No torch, Ray here.

Every record is frozen and picklable; token ids are plain ints so that records cross processes without arrays.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from rewards.section import Section

META = "learner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """What one rank runs.

    Example:
        RankInfo(rank=0, pid=4711, versions={"torch": "2.9.0"}, longest_shared=0, remarks=("this model ...",))
    """

    rank: int
    pid: int
    versions: dict[str, str]
    """Library -> version."""
    longest_shared: int
    """Tokens of the longest sequence that passes in a tree of sequences; 0: none does."""
    remarks: tuple[str, ...]
    """What a user should know of how the model computes, a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did, over all ranks.

    Example:
        StepReport(step=12, metrics={"loss": 0.71, "grad_norm": 0.9, "learning_rate": 1e-3}, learner_tokens=4812)
    """

    step: int
    metrics: dict[str, float]
    """Means over the batch's examples of what the method's loss reports; and `grad_norm` (before clipping),
    `learning_rate`."""
    learner_tokens: int
    """Prompt and response tokens that went through the policy (the reference runs on the same ones again)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """One parameter as it was sent.

    Example:
        WeightEntry(name="model.norm.weight", dtype="float32", shape=(64,), checksum=4607182418800017408)
    """

    name: str
    """Name in a Hugging Face checkpoint of the model."""
    dtype: str
    """torch dtype without its prefix, e.g. `bfloat16`."""
    shape: tuple[int, ...]
    checksum: int
    """`actors.tensors.checksum` of the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """The weights of one policy version.

    Example:
        WeightManifest(policy_version=3, entries=(entry,), total_bytes=256)
    """

    policy_version: int
    entries: tuple[WeightEntry, ...]
    """In the order they were sent."""
    total_bytes: int

    @property
    def checksum(self) -> int:
        """One number for all entries: blake2b over (name, dtype, shape, checksum) in order, first 8 bytes."""
        digest = hashlib.blake2b(digest_size=8)
        for entry in self.entries:
            digest.update(f"{entry.name}|{entry.dtype}|{entry.shape}|{entry.checksum}\n".encode())
        return int.from_bytes(digest.digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """A finished broadcast: every engine confirmed every checksum.

    Example:
        SyncReport(manifest=manifest, seconds=0.08)
    """

    manifest: WeightManifest
    seconds: float


class LearnerError(RuntimeError):
    """The learner cannot go on: bad input, a loss that is not finite, a dead rank, a missed deadline."""


class PoisonedUpdateError(LearnerError):
    """The loss or gradient of a step is not finite. Checkpoints from before the step are sound.

    Attributes:
        step: whose update it is.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, step)  # both, or it cannot cross processes
        self.step = step

    def __str__(self) -> str:
        return str(self.args[0])


class RankLostError(LearnerError):
    """A rank's process died or missed its deadline. A new group can go on from the last checkpoint."""


class WeightSyncError(LearnerError):
    """Weights did not reach an engine unchanged and in time; what it holds is not the announced version."""


class EngineLostError(WeightSyncError):
    """One engine died, missed the deadline, or received other bytes; the others can be served without it.

    Attributes:
        engine: its index among the handles that were connected.
        died: its process ended; otherwise it is there and must be ended before it may come back.
    """

    def __init__(self, message: str, engine: int, died: bool) -> None:
        super().__init__(message, engine, died)  # all of them, or it cannot cross processes
        self.engine = engine
        self.died = died

    def __str__(self) -> str:
        return str(self.args[0])


class LearnerMeta(Section):
    """learner.json, written last: without it there is no checkpoint."""

    identity: dict[str, object]
    """What the learner that goes on must agree on."""
    adam_steps: int = Field(ge=0)
    files: dict[str, str]
    """File name -> sha256."""


def read_meta(path: Path) -> LearnerMeta:
    """Of the checkpoint in the folder `path`, after comparing every file with its checksum.

    Raises:
        LearnerError: no checkpoint there, or a damaged one; names what is wrong.
    """
    try:
        meta = LearnerMeta.model_validate_json((path / META).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LearnerError(f"checkpoint {path}: no readable {META}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise LearnerError(f"checkpoint {path}: {META}: {where}: {first['msg']}") from None
    for name, digest in meta.files.items():
        if Path(name).name != name or not (path / name).is_file() or sha256_of(path / name) != digest:
            raise LearnerError(f"checkpoint {path}: file {name!r} is missing or damaged")
    return meta


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
