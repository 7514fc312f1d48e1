"""Answers with the preference vector that they exemplify, and the check that a policy fitted to them reads w."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.tasks.dialogues.transcript import DialoguePair
from rewards.preferences import PromptRenderer, evaluation_grid

SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
CHOSEN_SHIFT = 0.05
"""By how much a chosen answer weighs harmlessness more than a rejected one of its length."""


def conditioned_rows(pairs: Sequence[DialoguePair], *, seed: int, max_words: int) -> list[dict[str, Any]]:
    """Rows {"prompt", "response", "preference"} whose w says what the answer already is.

    The weight of detail is the rank of the answer's length (0 the shortest, 1 the longest), a little less when people
    chose the answer; the rest is harmlessness's. An answer stands for its openings too: one of them, drawn among
    those that end with a sentence, is a row of its own, so that one prompt is seen answered at different lengths.
    """
    rng = np.random.default_rng([seed, 21])
    answers = []  # prompt, text, shift of the weight of detail
    for pair in pairs:
        for answer, shift in ((pair.chosen, -CHOSEN_SHIFT), (pair.rejected, CHOSEN_SHIFT)):
            *shorter, longest = openings(answer, max_words) or [""]
            drawn = [shorter[rng.integers(len(shorter))]] if shorter else []
            answers += [(pair.prompt, text, shift) for text in (longest, *drawn) if text]
    lengths = np.array([len(text.split()) for _, text, _ in answers])
    # Ties are ranked at random, so that answers of one length do not all stand at one end.
    rank = np.empty(len(lengths))
    rank[np.lexsort((rng.random(len(lengths)), lengths))] = np.linspace(0, 1, len(lengths))
    detail = np.clip(rank + [shift for _, _, shift in answers], 0, 1)
    return [
        {"prompt": prompt, "response": text, "preference": [float(1 - w), float(w)]}
        for (prompt, text, _), w in zip(answers, detail, strict=True)
    ]


def openings(answer: str, max_words: int) -> list[str]:
    """The beginnings of an answer of at most `max_words` words that end with a sentence (or are it all), rising."""
    ends = [match.end() for match in SENTENCE_END.finditer(answer)]
    texts = [answer[:end] for end in dict.fromkeys((*ends, len(answer)))]
    return [text for text in texts if len(text.split()) <= max_words]


def measure_control(
    policy: Path, prompts: Sequence[str], *, renderer: PromptRenderer, max_new_tokens: int, seed: int
) -> float:
    """Spearman over the evaluation grid of the weight of detail (the last objective) and the mean log(1 + words)."""
    from orchestrator.tasks.fitting.supervised import sample_responses
    from rewards.functions import detail
    from rewards.pareto import spearman

    grid = evaluation_grid(2)  # [N, 2]
    asked = list(prompts) * len(grid)
    responses = sample_responses(
        policy,
        asked,
        np.repeat(grid, len(prompts), axis=0),
        renderer=renderer,
        max_new_tokens=max_new_tokens,
        seed=seed + 1,
    )
    lengths = np.reshape(detail(asked, responses), (len(grid), len(prompts))).mean(axis=1)
    return float(spearman(grid, np.stack([-lengths, lengths], axis=1))[-1])
