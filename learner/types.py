"""What enters and leaves the learner. No torch, Ray or DeepSpeed here.

Every record is frozen and picklable; token ids are plain ints so that records cross processes without arrays.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, sampled under w+, and how much each of them is preferred.

    Example:
        PreferencePair(prompt_ids_pos=(1, 17, 4), prompt_ids_neg=((1, 17, 9),), response_ids=((5, 2), (6, 7, 2)),
                       weight_y1=0.7, weight_y2=0.3)
    """

    prompt_ids_pos: tuple[int, ...]
    """[T_prompt] tokens of G(x, w+)."""
    prompt_ids_neg: tuple[tuple[int, ...], ...]
    """[M] times the tokens of G(x, w-), as many in every pair of a batch; unused when beta_w = 0."""
    response_ids: tuple[tuple[int, ...], tuple[int, ...]]
    """Tokens of y1 and y2; the end-of-sequence token included where it was sampled."""
    weight_y1: float
    """a1: sum of w+ over the objectives on which y1 scores higher."""
    weight_y2: float
    """a2: the same for y2. a1 + a2 = 1 without ties."""
    prompt_share: float = 1.0
    """1 / (pairs of its prompt): a step's loss is a mean over prompts, however many pairs each gives."""

    def __post_init__(self) -> None:
        if not all((self.prompt_ids_pos, self.prompt_ids_neg, *self.prompt_ids_neg)):
            raise ValueError("prompt_ids_pos and prompt_ids_neg must not be empty")
        if len(self.response_ids) != 2 or not all(self.response_ids):
            raise ValueError(f"response_ids must hold two non-empty responses, got {self.response_ids!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """Two responses to be imitated, each under a prompt of its own; for supervised methods.

    Example:
        LabelledPair(prompt_ids=((1, 17, 4), (1, 12, 8)), response_ids=((5, 2), (6, 7, 2)))
    """

    prompt_ids: tuple[tuple[int, ...], tuple[int, ...]]
    response_ids: tuple[tuple[int, ...], tuple[int, ...]]
    prompt_share: float = 1.0
    """As of a `PreferencePair`; every labelled pair counts in full."""

    def __post_init__(self) -> None:
        if not all((*self.prompt_ids, *self.response_ids)):
            raise ValueError(f"prompts and responses must not be empty, got {self.prompt_ids!r}, {self.response_ids!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """All pairs of one optimizer step.

    Example:
        PairBatch(step=12, pairs=(pair, another_pair))
    """

    step: int
    """Index of the step in the run, from 0; the learning rate follows from it."""
    pairs: tuple[PreferencePair, ...]
    """[B]; B may be smaller than planned when samples were dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBatch:
    """The same for a supervised method.

    Example:
        LabelledBatch(step=12, pairs=(pair, another_pair))
    """

    step: int
    pairs: tuple[LabelledPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did, over all ranks.

    Example:
        StepReport(step=12, metrics={"loss": 0.71, "grad_norm": 0.9, "learning_rate": 1e-3}, learner_tokens=4812)
    """

    step: int
    metrics: dict[str, float]
    """Means over the batch's prompts: see `learner.losses.mi_epo_loss`; and `grad_norm` (before clipping),
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
    """`torch.hash_tensor` of the values, as an unsigned 64-bit integer."""


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
