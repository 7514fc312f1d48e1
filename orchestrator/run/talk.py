"""`mi-epo generate`: answers to lines, under one w, under all of the grid, or in a dialogue."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from orchestrator.errors import BadInput
from orchestrator.run.steering import conditioning_of, read_preference

if TYPE_CHECKING:
    from orchestrator.run.speaker import Speaker

MARK = "> "


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Example: Wish(target=Path("runs/one"), prefer=["a=0.7", "b=0.3"], prompt="hi", chat=False, count=1, seed=0,
    sampling={"temperature": 0.5})"""

    target: Path
    """A run directory or a policy's folder."""
    prefer: Sequence[str] | None
    """NAME=W of every objective; None: every vector of the evaluation grid."""
    prompt: str | None
    """None: one a line of the input."""
    chat: bool
    """The lines are one dialogue."""
    count: int
    """Answers to each prompt."""
    seed: int
    sampling: Mapping[str, float]
    """In place of the values of training."""


def talk(wish: Wish, lines: TextIO, *, say: Callable[[str], None]) -> None:
    """Say the answers, until the lines end.

    Raises:
        BadInput: the wish or a prompt cannot be met; of a preference before the policy loads.
    """
    if wish.chat and (wish.prefer is None or wish.count > 1):
        raise BadInput("generate: --chat gives one answer under one w, so it goes with --prefer, and without -n")
    objectives = conditioning_of(wish.target).objectives
    preference = [] if wish.prefer is None else read_preference(wish.prefer, objectives).tolist()
    from orchestrator.run.speaker import Speaker, sweep

    speaker = Speaker(wish.target, seed=wish.seed, sampling=wish.sampling)
    if wish.chat:
        chat(speaker, preference, lines, say=say)
        return
    for prompt in asked(lines) if wish.prompt is None else iter((wish.prompt,)):
        if wish.prefer is None:
            for words, answers in sweep(speaker, prompt, wish.count):
                say("\n".join([words, *(f"  {answer}" for answer in answers)]))
        else:
            for answer in speaker.answers(prompt, preference, wish.count):
                say(answer)


def chat(speaker: "Speaker", preference: Sequence[float], lines: TextIO, *, say: Callable[[str], None]) -> None:
    """A dialogue with one policy; `/prefer NAME=W ...` changes w on the way, `/new` starts over.

    A policy whose prompts take one text (`style: text`) is asked each line alone.
    """
    from orchestrator.run.speaker import in_words
    from rewards.prompts import Prompt, Turn

    remembers = speaker.conditioning.preferences.conditioning.style == "chat"
    if not remembers:
        say("(this policy was trained on prompts of one text: it is asked each line alone)")
    turns: tuple[Turn, ...] = ()
    for line in asked(lines, mark=MARK if lines.isatty() else ""):
        word, *rest = line.split()
        try:
            if word == "/prefer":
                preference = read_preference(rest, speaker.objectives).tolist()
                say(f"({in_words(speaker.objectives, preference)})")
            elif word == "/new":
                turns = ()
            else:
                [answer] = speaker.answers(Prompt(text=line, earlier=turns), preference)
                say(answer)
                if remembers and answer.strip():
                    turns += Turn(role="user", content=line), Turn(role="assistant", content=answer.strip())
        except BadInput as error:  # the line is lost, the dialogue is not
            say(f"({error})")


def asked(lines: TextIO, *, mark: str = "") -> Iterator[str]:
    """Those that are not empty; `mark` is shown before each."""
    try:
        print(end=mark, flush=True)
        for line in lines:
            if line.strip():
                yield line.rstrip("\n")
            print(end=mark, flush=True)
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input: must be UTF-8 text: {error.reason} at byte {error.start}") from None
