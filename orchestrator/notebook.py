"""A run in Python: its figures as data frames, its policy to talk to.

What `mi-epo` writes is read again here; nothing of Ray or vLLM starts, but by `evaluate_policy`.

Example:
    run = open_run("runs/first")
    run.figures[["step", "mip", "hypervolume"]]
    run.answers("How do I boil an egg?", {"depth": 0.7, "ease": 0.3})
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.files import read_lines
from orchestrator.run.rundir import RunDir
from orchestrator.run.steering import conditioning_of
from orchestrator.run.tables import example_rows, front_rows
from rewards.metrics import evaluation_figures
from rewards.simplex import parse_preference

if TYPE_CHECKING:
    from orchestrator.config import Recipe
    from orchestrator.run.speaker import Speaker

Preference = Mapping[str, float]
"""Weight of every objective, by name; their sum is 1."""


def open_run(path: str | Path) -> "Run":
    """A run directory, finished or not, or what `mi-epo evaluate` has written.

    Raises:
        BadInput: it is none.
    """
    return Run(Path(path))


def evaluate_policy(target: str | Path, *, recipe: "Recipe | None" = None, output: str | Path | None = None) -> "Run":
    """As `mi-epo evaluate`: the preference grid on held-out prompts, by engines and judges that are started for it.

    Args:
        target: a run directory, or a policy's folder, which needs a recipe (`orchestrator.recipes.load_recipe`).
        output: a new folder for what is found; None: one within `target`.

    Raises:
        BadInput, RunFailed: as `mi-epo evaluate`.
    """
    from orchestrator.run.evaluation_run import evaluate

    return open_run(evaluate(Path(target), recipe, None if output is None else Path(output)))


class Run:
    """What a run has written so far. Its tables are read once; a run that goes on is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = RunDir.open(path).recipe()

    @property
    def objectives(self) -> tuple[str, ...]:
        """In the order of w."""
        return self.recipe.objective_names

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row for each optimizer step, a column for each key of metrics.jsonl."""
        return pd.DataFrame(read_lines(self.path / "metrics.jsonl"))

    @cached_property
    def figures(self) -> pd.DataFrame:
        """A row for each evaluation: `step`, and the figures of docs/metrics.md, as `mip` or `spearman/<objective>`."""
        return pd.DataFrame([evaluation_figures(each, self.objectives) for each in self._evaluations])

    @cached_property
    def front(self) -> pd.DataFrame:
        """A row for each evaluation and vector: `step`, `w/<objective>`, and the mean normalised `reward/<objective>`,
        with `audit/<objective>` where there are second judges."""
        return pd.DataFrame([row for record in self._evaluations for row in front_rows(record)])

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Answers kept word for word: `step`, `prompt`, `w/<objective>`, `response`, and their `reward/<objective>`."""
        return pd.DataFrame([row for record in self._evaluations for row in example_rows(record)])

    def answers(self, prompt: str, preference: Preference, *, count: int = 1) -> list[str]:
        """Of the trained policy, in plain transformers, as it was sampled in training.

        Raises:
            BadInput: there is no policy yet, or it cannot be asked so.
            PreferenceError: weights that are none of the objectives', or off the simplex.
        """
        weights = parse_preference(preference, conditioning_of(self.path).objectives)
        return self._speaker.answers(prompt, weights.tolist(), count)

    @cached_property
    def _speaker(self) -> "Speaker":
        from orchestrator.run.speaker import Speaker

        return Speaker(self.path)

    @cached_property
    def _evaluations(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "evaluations.jsonl")
