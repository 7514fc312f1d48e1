"""Pairs of dialogue transcripts, as HH-RLHF publishes them, taken apart into prompt and two answers.

A row is {"chosen": text, "rejected": text}; both transcripts read "\\n\\nHuman: ...\\n\\nAssistant: ..." and differ
only in the last assistant turn (a few published rows differ earlier: they have no shared prompt, and are skipped and
counted).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.data import read_rows
from orchestrator.errors import BadInput
from orchestrator.recipes import check
from rewards.environment import one_line

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class TranscriptRow(BaseModel):
    """One published row; fields beside these two are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DialoguePair:
    """Example: DialoguePair(prompt="Human: hi", chosen="Hello!", rejected="Go away.")"""

    prompt: str  # the dialogue up to the last assistant turn, without its marker
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcripts:
    """Example: Transcripts(pairs=(DialoguePair(...),), skipped=5)"""

    pairs: tuple[DialoguePair, ...]
    skipped: int  # rows without a shared prompt or with an empty answer


def read_transcripts(source: str) -> Transcripts:
    """Read JSONL (plain or gzip), a `datasets` folder, or `hub:NAME:DATA_DIR:SPLIT`. Raises BadInput naming the row."""
    pairs, skipped = [], 0
    for place, row in read_source(source):
        parsed = check(TranscriptRow.model_validate, row, place)
        pair = split_pair(parsed.chosen, parsed.rejected)
        if pair is None:
            skipped += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise BadInput(f"{source}: holds no pair of transcripts with a shared prompt ({skipped} rows read)")
    return Transcripts(pairs=tuple(pairs), skipped=skipped)


def read_source(source: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(place, row) of JSONL (plain or gzip), a `datasets` folder, or `hub:NAME:DATA_DIR:SPLIT` (DATA_DIR may be empty).

    Raises:
        BadInput: naming the source, or the place in it, that cannot be read.
    """
    return _read_hub(source) if source.startswith("hub:") else read_rows(source)


def split_pair(chosen: str, rejected: str) -> DialoguePair | None:
    """None when the transcripts share no prompt or an answer is empty."""
    (prompt, good), (other, bad) = split_transcript(chosen), split_transcript(rejected)
    if prompt != other or not prompt or not good or not bad:
        return None
    return DialoguePair(prompt=prompt, chosen=good, rejected=bad)


def split_transcript(text: str) -> tuple[str, str]:
    """(prompt, answer): what stands before and after the last assistant marker; ("", "") without one."""
    before, marker, after = text.rpartition(ASSISTANT)
    return (before.strip(), after.strip()) if marker else ("", "")


def shorten_prompt(turns: str, *, fits: Callable[[str], bool]) -> str | None:
    """Drop the oldest turns until the prompt fits; None when even the last human turn does not.

    `fits` maps a candidate prompt to whether it is short enough.
    """
    for start in _turn_starts(turns):
        if fits(turns[start:]):
            return turns[start:]
    return None


def _turn_starts(turns: str) -> Iterable[int]:
    """Where a suffix that begins with a human turn may start, oldest first."""
    yield 0
    position = turns.find(HUMAN)
    while position != -1:
        yield position + len("\n\n")
        position = turns.find(HUMAN, position + 1)


def _read_hub(source: str) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        _, name, data_dir, split = source.split(":")
    except ValueError:
        raise BadInput(f"source: a hub data set must read hub:NAME:DATA_DIR:SPLIT, got {source!r}") from None
    from datasets import load_dataset

    try:
        rows = load_dataset(name, data_dir=data_dir or None, split=split)
    except Exception as error:  # datasets raises a dozen kinds, from connection to missing split
        raise BadInput(f"{source}: cannot be loaded from the hub: {one_line(error)}") from None
    return ((f"{source}:{number}", dict(row)) for number, row in enumerate(rows))
