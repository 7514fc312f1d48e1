"""Merges that are tried before one is chosen for each w; RUN/merges.json, by which any w has its coefficients."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learner.methods import Merger, MethodSection, Tried, make_method
from learner.methods.method import Method
from orchestrator.config import method_section
from orchestrator.data import spread
from orchestrator.errors import BadInput
from orchestrator.files import replace_text
from orchestrator.recipes import read_record
from orchestrator.run.batching import count_tokens, make_request
from rewards.normalize import Normalizer
from rewards.section import Section
from rewards.simplex import quantize

if TYPE_CHECKING:
    from orchestrator.config import Recipe
    from orchestrator.inputs import Inputs
    from orchestrator.run.soup_sampler import SoupSampler

FILE_NAME = "merges.json"


class Merges(Section):
    """What a run's experts are merged by."""

    method: dict[str, Any]
    start: str
    """Folder of the policy that all experts started from."""
    coefficients: tuple[tuple[float, ...], ...]
    rewards: tuple[tuple[float, ...], ...]

    def of(self, preference: list[float]) -> list[float]:
        """The experts' coefficients [K] for w; what they lack of a sum of 1 is the start's."""
        method: Method = make_method(method_section(self.method))
        assert isinstance(method, Merger)
        return method.coefficients(preference, Tried(coefficients=self.coefficients, rewards=self.rewards))


def save_merges(run_path: Path, method: MethodSection, start: Path, tried: Tried) -> None:
    record = Merges(
        method=method.model_dump(mode="json"),
        start=str(start.resolve()),
        coefficients=tried.coefficients,
        rewards=tried.rewards,
    )
    replace_text(run_path / FILE_NAME, record.model_dump_json(indent=2) + "\n")


def load_merges(run_path: Path) -> Merges | None:
    """None of a run whose merges are w itself.

    Raises:
        BadInput: the file is damaged, or the start is not there any more.
    """
    if not (run_path / FILE_NAME).is_file():
        return None
    merges = read_record(Merges, run_path / FILE_NAME)
    if not Path(merges.start).is_dir():
        raise BadInput(
            f"{run_path / FILE_NAME}: start: must be the policy that all experts started from, got {merges.start!r}"
        )
    return merges


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Example: Trial(tried=..., generated_tokens=41000, seconds=12.5)"""

    tried: Tried
    generated_tokens: int
    seconds: float


def try_merges(
    recipe: "Recipe",
    candidates: Sequence[tuple[float, ...]],
    sampler: "SoupSampler",
    inputs: "Inputs",
    normalizer: Normalizer,
) -> Trial:
    """Every merge answers the same training prompts, asked for the w that its coefficients are in proportion to."""
    started, tokens, rewards = time.monotonic(), 0, []
    prompts = spread(inputs.train, recipe.evaluate.normalizer_prompts)
    for c in candidates:
        w = quantize(np.array(c) / sum(c), recipe.preferences.decimals)
        requests = [
            make_request(
                inputs.renderer, prompt=prompt, preference=w, num_responses=2, seed_parts=(recipe.seed, "merge", row)
            )
            for row, prompt in enumerate(prompts)
        ]
        found = sampler.sampler.sample(requests, sampler.send_merge(c))
        rewards.append(np.nanmean(normalizer.apply(found.scores["reward"]), axis=(0, 1)))
        tokens += count_tokens(found.rollouts)
    return Trial(
        tried=Tried(coefficients=tuple(candidates), rewards=tuple(tuple(row.tolist()) for row in rewards)),
        generated_tokens=tokens,
        seconds=time.monotonic() - started,
    )
