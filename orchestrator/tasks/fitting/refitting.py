"""Reward models fitted further, in a process of its own, to new comparisons and all that came before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.files import read_lines
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.fitting.config import Optimization, RewardFitConfig
from rewards.environment import derive_seed


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
    """Of the prompts that it sees, the same whenever it is fitted; members of an ensemble that saw the same would
    agree."""
    drawn_by: int
    """What decides which prompts."""
    seed: int


def refit(
    jobs: Sequence[Refit],
    optimization: Optimization,
    *,
    device: Literal["auto", "cpu"],
    silence_s: float,
    progress: Callable[[str], None],
) -> None:
    """Fit them one after the other, each into its own folder.

    Args:
        silence_s: longest wait for a sign of life of a fit.

    Raises:
        BadInput: a model that cannot be fitted, or no pair for it.
        RunFailed: a loss or a gradient is not finite, or nothing was told for too long.
    """
    if jobs:
        run_apart(_refit, progress, jobs, optimization, device, silence_s=silence_s)


def _refit(
    progress: Callable[[str], None], jobs: Sequence[Refit], optimization: Optimization, device: Literal["auto", "cpu"]
) -> None:
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
            device=device,
        )
        fit_reward(config, seen_of(rows, job), [], label=f"fitting {job.output.name} further", progress=progress)


def seen_of(rows: Sequence[dict[str, Any]], job: Refit) -> list[dict[str, Any]]:
    """The pairs of its prompts; all where none is its own."""
    own = [row for row in rows if derive_seed(job.drawn_by, row["prompt"]) % 1000 < 1000 * job.share]
    return own or list(rows)
