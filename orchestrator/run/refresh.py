"""Judges that keep up with the policy: fitted further to what annotators say of its own answers, from time to time.

A refresh is a function of (recipe, seed, step, policy), and what came of it lies in RUN/judges/step-N, so a run that
goes on has the judges that it had. Evaluations measure by the judges as they were at the start, so that they can be
compared. Shapes: B prompts, N responses, K objectives.
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.types import Rollout
from orchestrator.errors import BadInput
from orchestrator.files import Record, replace_text, write_lines
from orchestrator.run.batching import Renders, make_request
from orchestrator.run.rundir import RunDir
from orchestrator.run.stages import JudgedSampling
from rewards.config import ObjectiveConfig
from rewards.environment import derive_seed
from rewards.judge_sections import HuggingFaceScorerConfig, refreshed, single
from rewards.normalize import Normalizer
from rewards.prompts import Prompt
from rewards.simplex import PreferenceSampler

if TYPE_CHECKING:
    from orchestrator.config import Recipe

NORMALIZER = "normalizer.json"
"""In a refresh's folder, written last: without it the refresh was cut short."""
PAIRS = "pairs-{name}.jsonl"
MEMBER_SHARE = 0.5
"""Of the prompts that each member of an ensemble sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What a refresh found.

    Example: Refreshed(normalizer=..., labels=380, generated_tokens=6100, accuracy={"humor": .7})
    """

    normalizer: Normalizer
    """What scores of the refreshed judges are relative to."""
    labels: int
    """Pairs that annotators told apart."""
    generated_tokens: int
    accuracy: dict[str, float]
    """Objective -> share of these pairs that its judge, before the refresh, ranked as its annotator did."""


class Refresher:
    """Args:
    sampler: samples, and has the judges.
    renderer: writes w as the policy in training reads it.
    normalizer: of the recipe's judges.
    """

    def __init__(
        self,
        recipe: "Recipe",
        sampler: JudgedSampling,
        renderer: Renders,
        prompts: Sequence[Prompt],
        normalizer: Normalizer,
        run_dir: RunDir,
        *,
        say: Callable[[str], None],
    ) -> None:
        self.recipe = recipe
        self.sampler = sampler
        self.renderer = renderer
        self.prompts = prompts
        self.normalizer = normalizer
        self.run_dir = run_dir
        self.say = say
        self._folder: Path | None = None

    def is_due(self, step: int) -> bool:
        """Before the step is sampled."""
        return self.recipe.refresh is not None and step > 0 and step % self.recipe.refresh.every == 0

    def restore(self, step: int) -> Normalizer:
        """The judges as they were before `step`; returns what their scores are relative to.

        Raises:
            BadInput: they are not there any more.
        """
        every = None if self.recipe.refresh is None else self.recipe.refresh.every
        last = 0 if every is None else (step - 1) // every * every
        if last > 0:
            self._use(self.run_dir.judges_path(last))
        return self.normalizer

    def __call__(self, step: int, policy_version: int) -> Refreshed:
        """Sample, ask the annotators, fit, and have the judges replaced."""
        from orchestrator.tasks.fitting.config import Optimization
        from orchestrator.tasks.fitting.refitting import refit

        config = self.recipe.refresh
        assert config is not None
        folder = self.run_dir.judges_path(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        scored = self.sampler.sample(self._requests(step), policy_version, judges=("current", "annotator"))
        old_BNK, told_BNK = scored.scores["current"], scored.scores["annotator"]
        accuracy, labels = dict[str, float](), 0
        for k, objective in enumerate(self.recipe.objectives):
            if objective.annotator is None:
                continue
            found = list(comparisons(scored.rollouts, told_BNK[..., k], sharpness=config.sharpness))
            if not found:
                raise BadInput(
                    f"objectives.{k}.annotator: must tell some answers apart, told none of {told_BNK[..., k].size}"
                )
            write_lines(folder / PAIRS.format(name=objective.name), found)
            accuracy[objective.name] = agreement(old_BNK[..., k], told_BNK[..., k])
            labels += len(found)
        optimization = Optimization(
            steps=config.steps,
            batch_size=config.prompts_per_step,
            learning_rate=config.learning_rate,
            schedule="constant",
        )
        refit(list(self._jobs(folder, step)), optimization, progress=self.say)
        self.sampler.use_judges(folder)
        self.normalizer = carried_over(self.normalizer, old_BNK, self.sampler.score(scored.rollouts, "current"))
        replace_text(folder / NORMALIZER, json.dumps(self.normalizer.to_record()) + "\n")
        self._folder = folder
        told = ", ".join(f"{name} ranked {share:.1%} as its annotator" for name, share in accuracy.items())
        self.say(f"judges fitted further to {labels} new labels before step {step + 1}: {told}")
        tokens = sum(len(response.token_ids) for rollout in scored.rollouts for response in rollout.responses)
        return Refreshed(normalizer=self.normalizer, labels=labels, generated_tokens=tokens, accuracy=accuracy)

    def _use(self, folder: Path) -> None:
        try:
            record = json.loads((folder / NORMALIZER).read_text(encoding="utf-8"))
            self.normalizer = Normalizer.from_dict(record)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise BadInput(f"{folder / NORMALIZER}: must hold the judges' normaliser: {error}") from None
        self.sampler.use_judges(folder)
        self._folder = folder

    def _requests(self, step: int) -> list:
        config = self.recipe.refresh
        assert config is not None
        rng = np.random.default_rng([self.recipe.seed, step, 5])
        chosen = rng.permutation(len(self.prompts))[: config.prompts]
        preferences, _ = PreferenceSampler(self.recipe.preferences).draw(rng, len(chosen), self.recipe.num_objectives)
        return [
            make_request(
                self.renderer,
                prompt=self.prompts[index],
                preference=w,
                num_responses=config.responses,
                seed_parts=(self.recipe.seed, "refresh", step, row),
            )
            for row, (index, w) in enumerate(zip(chosen, preferences, strict=True))
        ]

    def _jobs(self, folder: Path, step: int) -> Iterator:
        """Each judge goes on from where it stands, with all labels of the run."""
        from orchestrator.tasks.fitting.refitting import Refit

        for objective in self.recipe.objectives:
            if objective.annotator is None:
                continue
            files = sorted(self.run_dir.judges_path(0).parent.glob(f"step-*/{PAIRS.format(name=objective.name)}"))
            now, then = self._models(objective, self._folder), self._models(objective, folder)
            for member, (judge, output) in enumerate(zip(now, then, strict=True)):
                yield Refit(
                    model=judge.model,
                    output=Path(output.model),
                    template=judge.template,
                    max_length=judge.max_length,
                    pairs=tuple(files),
                    share=MEMBER_SHARE if len(now) > 1 else 1.0,
                    seed=derive_seed(self.recipe.seed, "refresh", step, objective.name, member) % 2**31,
                )

    @staticmethod
    def _models(objective: ObjectiveConfig, folder: Path | None) -> list[HuggingFaceScorerConfig]:
        judge = objective.scorer if folder is None else refreshed(objective.name, objective.scorer, folder)
        return [each for each in single(judge) if isinstance(each, HuggingFaceScorerConfig)]


def comparisons(rollouts: Sequence[Rollout], told: np.ndarray, *, sharpness: float | None) -> Iterator[Record]:
    """Rows {"prompt", "chosen", "rejected", "probability"} of every two responses that the annotator tells apart.

    Args:
        told: [B, N] its scores; NaN: it said nothing.
        sharpness: see `RefreshConfig.sharpness`.
    """
    for rollout, scores in zip(rollouts, told, strict=True):
        for first, second in itertools.combinations(range(len(scores)), 2):
            gap = scores[first] - scores[second]
            if not math.isfinite(gap) or gap == 0 or rollout.responses[first].text == rollout.responses[second].text:
                continue
            better, worse = (first, second) if gap > 0 else (second, first)
            yield {
                "prompt": rollout.request.prompt.plain,
                "chosen": rollout.responses[better].text,
                "rejected": rollout.responses[worse].text,
                "probability": 1.0 if sharpness is None else 1 / (1 + math.exp(-sharpness * abs(gap))),
            }


def agreement(judged: np.ndarray, told: np.ndarray) -> float:
    """Share of the pairs of a prompt's responses [B, N], told apart, that are judged the same way; NaN without any."""
    gap_told, gap_judged = (scores[:, :, None] - scores[:, None, :] for scores in (told, judged))
    counts = np.isfinite(gap_told) & (gap_told > 0) & np.isfinite(gap_judged)
    return float((gap_judged[counts] > 0).mean()) if counts.any() else math.nan


def carried_over(normalizer: Normalizer, old: np.ndarray, new: np.ndarray) -> Normalizer:
    """The normaliser under which the same responses have by new scores the mean and the spread that they had by old.

    A Bradley-Terry model may shift and stretch its scores freely. An objective without any spread keeps its own.

    Args:
        old, new: [..., K] of the same responses, before and after.
    """
    finite = np.isfinite(old).all(axis=-1) & np.isfinite(new).all(axis=-1)
    old_RK, new_RK = old[finite], new[finite]
    spread_old, spread_new = old_RK.std(axis=0), new_RK.std(axis=0)
    moves = (spread_old > 0) & (spread_new > 0)
    stretch = np.divide(spread_new, spread_old, out=np.ones_like(spread_new), where=moves)
    shift = np.where(moves, new_RK.mean(axis=0) - stretch * old_RK.mean(axis=0), 0.0)
    return normalizer.moved(stretch, shift)
