"""Reward models fitted further, in a process of its own, to new comparisons and all that came before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.files import read_lines
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.fitting.config import Optimization, RewardFitConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """One reward model. Example: Refit(model="judges/step-000025/humor", output=..., template="{response}", ...)"""

    model: str
    output: Path
    template: str
    max_length: int
    pairs: tuple[Path, ...]
    """Files of rows {"prompt", "chosen", "rejected", "probability"}."""
    share: float
    """Of the prompts that it sees, drawn by its seed; members of an ensemble that saw the same would agree."""
    seed: int


def refit(jobs: Sequence[Refit], optimization: Optimization, *, progress: Callable[[str], None]) -> None:
    """Fit them one after the other, each into its own folder.

    Raises:
        BadInput: a model that cannot be fitted, or no pair for it.
        RunFailed: a loss or a gradient is not finite.
    """
    run_apart(_refit, progress, jobs, optimization)


def _refit(progress: Callable[[str], None], jobs: Sequence[Refit], optimization: Optimization) -> None:
    import torch

    from orchestrator.tasks.fitting.bradley_terry import fit_reward

    torch.set_num_threads(1)  # with more, sums would depend on how many there are
    for job in jobs:
        rows = [row for path in job.pairs for row in read_lines(path)]
        config = RewardFitConfig(
            output=str(job.output),
            model=job.model,
            template=job.template,
            max_length=job.max_length,
            optimization=optimization,
            heldout_fraction=0.0,
            seed=job.seed,
        )
        fit_reward(config, _seen(rows, job), [], label=f"fitting {job.output.name} further", progress=progress)


def _seen(rows: Sequence[dict[str, Any]], job: Refit) -> list[dict[str, Any]]:
    """The pairs of a share of the prompts, at least one."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    count = max(1, round(job.share * len(prompts)))
    seen = {prompts[index] for index in np.random.default_rng(job.seed).permutation(len(prompts))[:count]}
    return [row for row in rows if row["prompt"] in seen]
