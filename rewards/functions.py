"""Ready-made scorers for `type: python` objectives: plain functions of prompts and responses."""

import math
from collections.abc import Sequence


def brevity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """-log(1 + words) of each response [N]: 0 for an empty one, falling by about the same with each doubling."""
    return [-math.log1p(len(response.split())) for response in responses]


def detail(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """log(1 + words) of each response [N]: 0 for an empty one, rising by about the same with each doubling."""
    return [math.log1p(len(response.split())) for response in responses]
