"""Ready-made scorers for `type: python` objectives: plain functions of prompts and responses, [N] scores.

None understands what it reads: each says how it is fooled. Those that need a package are in `rewards.readability` and
`rewards.sentiment`.
"""

import math
from collections.abc import Sequence


def brevity(prompts: Sequence[str], responses: Sequence[str], *, enough: int = 0) -> list[float]:
    """-log(1 + words): 0 for an empty response, falling by about the same with each doubling.

    Fooled by saying nothing, unless `enough` words are asked for: a shorter response then scores no better.
    """
    return [-math.log1p(max(enough, len(response.split()))) for response in responses]


def detail(prompts: Sequence[str], responses: Sequence[str], *, enough: int | None = None) -> list[float]:
    """log(1 + words): 0 for an empty response, rising by about the same with each doubling.

    Fooled by repetition, padding, and never coming to an end, unless so many words are `enough`: a longer response then
    scores no better.
    """
    counts = (len(response.split()) for response in responses)
    return [math.log1p(count if enough is None else min(enough, count)) for count in counts]
