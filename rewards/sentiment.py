"""How friendly a response sounds, for `type: python` objectives. Needs vaderSentiment, which is in the lock."""

import functools
from collections.abc import Sequence
from typing import Any

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise ImportError(f"{error}; the package vaderSentiment is part of the set-up (make setup)") from None


def positivity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Compound sentiment [N] of VADER (Hutto and Gilbert 2014): -1 to 1, 0 without an opinion.

    Rules over a list of words, emoticons and punctuation, made for short English texts. Fooled by piles of friendly
    words, praise and exclamation marks; says nothing about whether the question was answered.
    """
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]


@functools.cache
def _analyzer() -> Any:
    return SentimentIntensityAnalyzer()  # reads its word list from a file
