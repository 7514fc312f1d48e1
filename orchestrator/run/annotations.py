"""What annotators said of a run's answers, kept word for word: what was paid for is not asked again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.types import Rollout
from orchestrator.files import json_line, read_lines

FILE_NAME = "annotations.jsonl"


class Annotations:
    """RUN/annotations.jsonl, a line for each answer that an objective's annotator was asked about.

    A run that goes back samples the same answers again, so it finds here what was said of them; only thus does a run
    repeat itself whose annotators would not.
    """

    def __init__(self, run_path: Path) -> None:
        self._file = run_path / FILE_NAME
        self._said: dict[tuple[str, str, str], float] = {}
        for line in read_lines(self._file):
            said = line["score"]
            self._said[line["objective"], line["prompt"], line["response"]] = float("nan") if said is None else said

    def of(self, rollouts: Sequence[Rollout], objective: str) -> np.ndarray | None:
        """[B, N]; None where one of the answers is not known."""
        keys = [[(objective, *pair) for pair in _pairs(rollout)] for rollout in rollouts]
        if not all(key in self._said for row in keys for key in row):
            return None
        return np.array([[self._said[key] for key in row] for row in keys])

    def add(self, rollouts: Sequence[Rollout], objective: str, scores: np.ndarray) -> None:
        """`scores` [B, N], NaN where nothing was said."""
        with self._file.open("a", encoding="utf-8") as file:
            for rollout, row in zip(rollouts, scores, strict=True):
                for (prompt, response), score in zip(_pairs(rollout), row, strict=True):
                    self._said[objective, prompt, response] = float(score)
                    line = {
                        "objective": objective,
                        "prompt": prompt,
                        "response": response,
                        "score": float(score),
                    }
                    file.write(json_line(line))


def _pairs(rollout: Rollout) -> list[tuple[str, str]]:
    return [(rollout.request.prompt.plain, response.text) for response in rollout.responses]
