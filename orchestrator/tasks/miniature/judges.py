"""The miniature's reward models: one for each objective, and further ones that know less, for an ensemble.

Each is fitted on one thread, so that its sums are the same everywhere; several are fitted side by side.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.progress import how_far
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.miniature.spec import RewardSpec

if TYPE_CHECKING:
    from orchestrator.tasks.miniature.fits import Responses

Say = Callable[[str], None]
Measured = dict[str, float]
"""Of one fit: pairs, loss, heldout_pairs, heldout_accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Example: `Judge(objective="helpfulness", folder=..., seed=1000, half=True)`."""

    objective: str
    folder: Path
    seed: int
    half: bool
    """Sees half of the prompts, drawn by its seed, and takes half as many steps."""


def judges_of(rewards: Mapping[str, Path], members: Mapping[str, Sequence[Path]], seed: int) -> list[Judge]:
    """Those that see everything first."""
    whole = [
        Judge(objective=name, folder=folder, seed=seed + index, half=False)
        for index, (name, folder) in enumerate(rewards.items())
    ]
    return whole + [
        Judge(objective=name, folder=folder, seed=seed + 1000 * number + index, half=True)
        for index, (name, folders) in enumerate(members.items())
        for number, folder in enumerate(folders, start=1)
    ]


def fit_judges(
    judges: Sequence[Judge], responses: "Responses", settings: RewardSpec, *, progress: Say
) -> dict[str, Measured]:
    """Folder's name -> what its fit measured. On all cores that this process may use."""
    cores = min(len(os.sched_getaffinity(0)), len(judges))
    started, fitted, lock = time.monotonic(), list[str](), threading.Lock()

    def tell(name: str) -> None:
        with lock:
            fitted.append(name)
            progress(how_far("reward models", len(fitted), len(judges), "fitted", started=started))

    def fit(core: int) -> dict[str, Measured]:
        return run_apart(_fit, tell, judges[core::cores], responses, settings)

    with ThreadPoolExecutor(cores) as threads:
        reports = [report for part in threads.map(fit, range(cores)) for report in part.items()]
    return {judge.folder.name: dict(reports)[judge.folder.name] for judge in judges}


def _fit(tell: Say, judges: Sequence[Judge], responses: "Responses", settings: RewardSpec) -> dict[str, Measured]:
    import torch

    from orchestrator.tasks.fitting.trainer import quiet
    from orchestrator.tasks.miniature.fits import fit_reward_model

    torch.set_num_threads(1)  # with more, sums would depend on how many there are
    measured = {}
    with quiet():
        for judge in judges:
            compared, sees = responses, settings
            if judge.half:
                drawn = np.random.default_rng(judge.seed).permutation(len(responses))[: len(responses) // 2]
                compared = [responses[index] for index in sorted(drawn)]
                sees = replace(settings, steps=max(1, settings.steps // 2))
            report = fit_reward_model(judge.folder, compared, judge.objective, seed=judge.seed, settings=sees)
            measured[judge.folder.name] = {
                "pairs": report.rows,
                "loss": report.loss,
                "heldout_pairs": report.heldout_rows,
                "heldout_accuracy": report.heldout_accuracy or 0.0,
            }
            tell(judge.folder.name)
    return measured
