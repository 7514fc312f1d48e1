"""How easy a response is to read, for `type: python` objectives. Needs the package textstat, which is in the lock."""

import warnings
from collections.abc import Sequence

try:
    with warnings.catch_warnings():
        # Symptom: a line about pkg_resources in every judge's log. Cause: textstat 0.7.4 imports it for its word lists.
        # Delete when a textstat that does not download anything on its first use no longer does.
        warnings.simplefilter("ignore", DeprecationWarning)
        from textstat import textstat
except ImportError as error:
    raise ImportError(f"{error}; the package textstat is part of the set-up (make setup)") from None

from rewards.functions import repetition as repeated_share

LOWEST, HIGHEST = -50.0, 120.0
"""Flesch's scale has no ends; beyond these a text is not easier or harder, only stranger."""


def reading_ease(prompts: Sequence[str], responses: Sequence[str], *, repetition: float = 0.0) -> list[float]:
    """Flesch reading ease [N] (Flesch 1948, syllables by hyphenation), cut to `LOWEST` .. `HIGHEST`.

    206.835 - 1.015 words per sentence - 84.6 syllables per word: about 90 for a child's book, 30 for a law. A response
    without a letter gets the lowest. Fooled by sentences of one word, by lists of short words, and by nonsense: it
    counts syllables and full stops, and knows English alone. Fooled by saying the same easy words again, unless
    `repetition` is above 0: so many points, times `rewards.functions.repetition`, are then taken off.
    """
    return [_ease(response) - repetition * repeated_share(response) for response in responses]


def _ease(response: str) -> float:
    if not any(map(str.isalpha, response)):
        return LOWEST
    return min(HIGHEST, max(LOWEST, float(textstat.flesch_reading_ease(response))))
