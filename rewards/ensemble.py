"""Several judges of one thing, whose disagreement counts against a response: what one of them can be fooled by, all of
them seldom are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewards.environment import local_folder
from rewards.judge_sections import EnsembleScorerConfig, HuggingFaceScorerConfig, ScorerConfig
from rewards.scorers import NO_COLUMNS, Columns, Scorer, ScorerError

SCALE_FILE = "reward_scale.json"
"""In a folder that `fit-reward` wrote: {"mean": ..., "std": ...} of its scores of the pairs that were held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Example: Scale(mean=-0.4, std=1.7)"""

    mean: float
    std: float


class EnsembleScorer:
    """Combines the scores of its members, each brought to its own scale first where all members have one.

    Args:
        members: loaded, in the config's order.
    """

    def __init__(self, config: EnsembleScorerConfig, members: Sequence[Scorer]) -> None:
        self._config = config
        self._members = members
        self._scales = scales_of(config)

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns = NO_COLUMNS) -> np.ndarray:
        """float64 [N]; NaN where a member gave none."""
        scores_MN = np.stack([member.score(prompts, responses, columns) for member in self._members])
        scaled_MN = np.stack(
            [(scores_N - scale.mean) / scale.std for scores_N, scale in zip(scores_MN, self._scales, strict=True)]
        )
        return combine(scaled_MN, rule=self._config.rule, c=self._config.c)


def combine(scores: np.ndarray, *, rule: str, c: float) -> np.ndarray:
    """[N] of the members' scores [M, N]: their mean less c standard deviations (ddof 0), or the least of them."""
    if rule == "least":
        return np.asarray(scores.min(axis=0))
    return np.asarray(scores.mean(axis=0) - c * scores.std(axis=0))


def scales_of(config: EnsembleScorerConfig) -> list[Scale]:
    """Of each member; that of none is changed where none has a scale.

    Raises:
        ScorerError: some members have one and others not, so their scores cannot be added up; or one is broken.
    """
    found = [_scale(member) for member in config.members]
    known = [scale for scale in found if scale is not None]
    if known and len(known) < len(found):
        raise ScorerError(
            f"members must all hold {SCALE_FILE}, which fit-reward writes, or none of them; "
            f"members.{found.index(None)} has none"
        )
    return known or [Scale(mean=0.0, std=1.0)] * len(found)


def write_scale(folder: Path, scores: np.ndarray) -> None:
    """Of scores [N], into the judge's folder; none where they are all the same."""
    if len(scores) > 1 and scores.std() > 0:
        text = json.dumps({"mean": float(scores.mean()), "std": float(scores.std())})
        (folder / SCALE_FILE).write_text(text + "\n", encoding="utf-8")


def _scale(member: ScorerConfig) -> Scale | None:
    folder = local_folder(member.model) if isinstance(member, HuggingFaceScorerConfig) else None
    if folder is None or not isinstance(member, HuggingFaceScorerConfig) or not (folder / SCALE_FILE).is_file():
        return None
    try:
        record = json.loads((folder / SCALE_FILE).read_text(encoding="utf-8"))
        mean, std = float(record["mean"]), float(record["std"])
    except (ValueError, TypeError, KeyError) as error:
        raise ScorerError(f"{folder / SCALE_FILE}: must hold mean and std, got {error}") from None
    if not np.isfinite([mean, std]).all() or std <= 0:
        raise ScorerError(f"{folder / SCALE_FILE}: mean must be finite and std above 0, got {mean} and {std}")
    return Scale(mean=-mean if member.negate else mean, std=std)
