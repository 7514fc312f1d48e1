"""Ready-made scorers for `type: python` objectives: plain functions of prompts and responses, [N] scores.

None understands what it reads: each says how it is fooled. Those that need a package are in `rewards.readability` and
`rewards.sentiment`.
"""

import math
import re
from collections.abc import Sequence


def brevity(prompts: Sequence[str], responses: Sequence[str], *, enough: int = 0) -> list[float]:
    """-log(1 + words): 0 for an empty response, falling by about the same with each doubling.

    Fooled by saying nothing, unless `enough` words are asked for: a shorter response then scores no better.
    """
    return [-math.log1p(max(enough, len(response.split()))) for response in responses]


def detail(
    prompts: Sequence[str], responses: Sequence[str], *, enough: int | None = None, repeated: bool = True
) -> list[float]:
    """log(1 + words): 0 for an empty response, rising by about the same with each doubling.

    Fooled by repetition, unless `repeated` is false: the share of words that `repetition` tells is then not counted. By
    padding and never coming to an end, unless so many words are `enough`: a longer response then scores no better.
    """
    counts = (len(text.split()) * (1.0 if repeated else 1.0 - repetition(text)) for text in responses)
    return [math.log1p(count if enough is None else min(enough, count)) for count in counts]


def long_words(prompts: Sequence[str], responses: Sequence[str], *, letters: int = 7) -> list[float]:
    """log(1 + different words of so many letters or more): terms, names and whatever else is not said in short words.

    Saying one again does not count. Fooled by lists of long words, and by long words where short ones would do.
    """
    return [
        math.log1p(len({word for word in re.findall(r"[^\W\d_]+", text.lower()) if len(word) >= letters}))
        for text in responses
    ]


def right_number(prompts: Sequence[str], responses: Sequence[str], answer: Sequence[float | str]) -> list[float]:
    """1 where the last number of a response is the right one, as a number (`22`, `22.0` and `1,000` count), else 0.

    `answer` is a column of the data (`columns: [answer]`). Fooled by reaching the right number on a wrong way.
    """
    return [float(_last_number(text) == _number(right)) for text, right in zip(responses, answer, strict=True)]


def _last_number(text: str) -> float | None:
    found = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return _number(found[-1]) if found else None


def _number(value: float | str) -> float:
    """Raises ValueError for what is none."""
    return float(str(value).replace(",", ""))


def repetition(text: str) -> float:
    """Share of a text's runs of three words that stood in it before: 0 where it never repeats itself, at most near 1.

    Case and punctuation do not count. Example: repetition("it is a cat. It is a dog.") == 1 / 6
    """
    words = re.findall(r"[\w'-]+", text.lower())
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0
