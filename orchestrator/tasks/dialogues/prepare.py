"""Public preference data -> prompts to train and to evaluate on, and rows for the supervised stage before that.

A supervised row carries the preferred answer and a preference vector that is drawn at random, whatever the answer: the
policy meets the written form G(x, w) and learns to answer under it without being taught anything about w.

HH-RLHF publishes pairs of transcripts, {"chosen": text, "rejected": text}; each of the two reads
"\\n\\nHuman: ...\\n\\nAssistant: ...", and they differ only in the last assistant turn (a few published rows differ
earlier: they have no shared prompt, and are skipped and counted).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from orchestrator.errors import BadInput
from orchestrator.files import write_lines
from orchestrator.recipes import check
from orchestrator.rows import read_rows
from orchestrator.tasks.assets import whole_folder
from rewards.environment import is_unicode
from rewards.section import ObjectiveNames, Section, Seed
from rewards.simplex import sample_preference_pairs

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


UnixText = Annotated[str, AfterValidator(lambda text: text.replace("\r\n", "\n"))]
"""As the markers of turns are written."""


class TranscriptRow(BaseModel):
    """One published row; fields beside these two are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    chosen: UnixText
    rejected: UnixText


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
    for place, row in read_rows(source):
        parsed = check(TranscriptRow.model_validate, row, place)
        pair = split_pair(parsed.chosen, parsed.rejected)
        if pair is None:
            skipped += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise BadInput(f"{source}: holds no pair of transcripts with a shared prompt ({skipped} rows read)")
    return Transcripts(pairs=tuple(pairs), skipped=skipped)


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


class PrepareOptions(Section):
    format: Literal["transcripts", "saferlhf"] = "transcripts"
    """Rows of HH-RLHF (two transcripts), or of PKU-SafeRLHF (a prompt and two responses)."""
    train: int | None = Field(default=None, ge=1)
    """Prompts to train on. Null: all that are not held out."""
    heldout: int = Field(default=200, ge=1)
    """Prompts to evaluate on; the same ones for any `train`."""
    multi_turn: Literal["skip", "keep"] = "skip"
    """Transcripts of more than one human turn: a prompt with turn markers inside suits no chat template."""
    seed: Seed = 0
    objectives: ObjectiveNames = Field(default=("helpfulness", "harmlessness"), min_length=1)
    """As in the recipe; a vector has one weight for each."""
    alpha: float = Field(default=1.0, gt=0)
    """Concentration of the symmetric Dirichlet that vectors are drawn from: 1 is uniform."""
    decimals: int = Field(default=1, ge=1, le=3)
    """Digits after the point of a weight."""


class SafeRLHFRow(BaseModel):
    """One published row; other fields are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    prompt: str
    response_0: str
    response_1: str
    is_response_0_safe: bool
    is_response_1_safe: bool
    better_response_id: Annotated[int, Field(ge=0, le=1)]
    safer_response_id: Annotated[int, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Example: Answers(rows=3, by_prompt={"hi": ("Hello!",)}, skipped={"of several turns": 2})"""

    rows: int  # read from the source
    by_prompt: dict[str, tuple[str, ...]]  # prompt -> its distinct preferred answers, both in order of appearance
    skipped: dict[str, int]  # reason -> rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Example: Prepared(train=1000, heldout=200, supervised=1012)"""

    train: int  # prompts
    heldout: int  # prompts
    supervised: int  # rows


def read_options(values: Mapping[str, Any]) -> PrepareOptions:
    """Options by name; None means not given, other names are left alone. Raises BadInput for a value out of range."""
    given = {name: values[name] for name in PrepareOptions.model_fields if values.get(name) is not None}
    return check(PrepareOptions.model_validate, given, "prepare")


def prepare(
    source: str, directory: Path, options: PrepareOptions | None = None, *, progress: Callable[[str], None]
) -> Prepared:
    """Write prompts/train.jsonl and prompts/heldout.jsonl (rows {"prompt"}), and sft.jsonl (see `supervised_rows`).

    No prompt is in both files, none twice, their order is drawn by the seed, and the supervised rows answer training
    prompts only.

    Args:
        source: as for `orchestrator.rows.read_rows`.
        directory: a new or empty folder; filled whole or not at all.
        progress: receives what was read, skipped and written, one line each.

    Raises:
        BadInput: a source that cannot be read, a broken row (file and line, key, rule, value), fewer prompts than
            asked for, or a folder that holds files or cannot be written.
    """
    options = options or PrepareOptions()
    with whole_folder(_new(directory)) as folder:
        answers = read_answers(source, options)
        skipped = ", ".join(f"{count} {reason}" for reason, count in answers.skipped.items())
        progress(f"{source}: {answers.rows} rows read" + (f"; skipped: {skipped}" if skipped else ""))
        train, heldout = split_prompts(list(answers.by_prompt), source, options)
        for name, prompts in (("train", train), ("heldout", heldout)):
            write_lines(folder / "prompts" / f"{name}.jsonl", ({"prompt": prompt} for prompt in prompts))
        supervised = supervised_rows(train, answers.by_prompt, options)
        write_lines(folder / "sft.jsonl", supervised)
    prepared = Prepared(train=len(train), heldout=len(heldout), supervised=len(supervised))
    progress(
        f"{directory}: of {len(answers.by_prompt)} different prompts {prepared.train} to train on, {prepared.heldout} "
        f"held out; {prepared.supervised} supervised rows"
    )
    return prepared


def read_answers(source: str, options: PrepareOptions) -> Answers:
    """Every prompt of the source with its preferred answers. Raises BadInput, as `prepare`."""
    skipped: Counter[str] = Counter()
    found = _from_transcripts if options.format == "transcripts" else _from_saferlhf
    by_prompt: dict[str, dict[str, None]] = {}
    used = 0
    for prompt, answer in found(source, options, skipped):
        if is_unicode(prompt + answer):
            by_prompt.setdefault(prompt, {})[answer] = None
            used += 1
        else:
            skipped["with half a character"] += 1
    return Answers(
        rows=used + skipped.total(),
        by_prompt={prompt: tuple(texts) for prompt, texts in by_prompt.items()},
        skipped=dict(skipped),
    )


def split_prompts(prompts: Sequence[str], source: str, options: PrepareOptions) -> tuple[list[str], list[str]]:
    """(to train on, held out) of different prompts, in an order drawn by the seed. Raises BadInput for too few."""
    needed = options.heldout + (options.train or 1)
    if len(prompts) < needed:
        raise BadInput(
            f"{source}: must hold {needed} different prompts to use (heldout {options.heldout}, train "
            f"{options.train or 'at least 1'}), got {len(prompts)}"
        )
    order = np.random.default_rng([options.seed, 22]).permutation(len(prompts))
    shuffled = [prompts[index] for index in order]
    end = None if options.train is None else options.heldout + options.train
    return shuffled[options.heldout : end], shuffled[: options.heldout]


def supervised_rows(
    prompts: Sequence[str], answers: Mapping[str, Sequence[str]], options: PrepareOptions
) -> list[dict[str, Any]]:
    """Rows {"prompt", "response", "preference"} for every answer to the prompts.

    A preference is a list of K weights in the order of the objectives, quantised, with sum 1; it is drawn independently
    of both texts, see the top of this file.
    """
    pairs = [(prompt, answer) for prompt in prompts for answer in answers[prompt]]
    preferences_NK, _ = sample_preference_pairs(
        np.random.default_rng([options.seed, 23]),
        len(pairs),
        len(options.objectives),
        alpha=options.alpha,
        decimals=options.decimals,
    )
    return [
        {"prompt": prompt, "response": answer, "preference": preference_K.tolist()}
        for (prompt, answer), preference_K in zip(pairs, preferences_NK, strict=True)
    ]


def plain_prompt(dialogue: str) -> str:
    """A dialogue without the marker of its first human turn, which templates write themselves; "" without that turn."""
    marker = HUMAN.strip()
    return dialogue.removeprefix(marker).strip() if dialogue.startswith(marker) else ""


def _from_transcripts(source: str, options: PrepareOptions, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """(prompt, preferred answer) of each row that can be used; the others are counted by reason."""
    transcripts = read_transcripts(source)
    if transcripts.skipped:
        skipped["without a shared prompt or an answer"] = transcripts.skipped
    for pair in transcripts.pairs:
        if options.multi_turn == "skip" and (HUMAN in pair.prompt or ASSISTANT in pair.prompt):
            skipped["of several turns"] += 1
        elif prompt := plain_prompt(pair.prompt):
            yield prompt, pair.chosen
        else:
            skipped["without a human turn"] += 1


def _from_saferlhf(source: str, options: PrepareOptions, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """As `_from_transcripts`."""
    for place, row in read_rows(source):
        parsed = check(SafeRLHFRow.model_validate, row, place)
        prompt = parsed.prompt.strip()
        answer = (parsed.response_0, parsed.response_1)[parsed.better_response_id].strip()
        if prompt and answer:
            yield prompt, answer
        else:
            skipped["without a prompt or an answer"] += 1


def _new(directory: Path) -> Path:
    """The same, absolute. Raises BadInput when something is in it."""
    target = directory.resolve()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BadInput(f"{directory}: already holds something; choose a new or empty folder")
    except OSError as error:
        raise BadInput(f"{directory}: cannot be written: {error.strerror}") from None
    return target
