"""Judges that keep up with the policy: fitted further to what annotators say of its own answers, from time to time.

What comes of a refresh lies in RUN/judges/step-N, so a run that goes on has the judges that it had; what annotators
said is kept in RUN/annotations.jsonl. Evaluations measure by the judges as they were at the start, so that they can be
compared. Shapes: B prompts, N responses, K objectives, A of them annotated.
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.types import GenerationRequest, Rollout
from orchestrator.errors import BadInput, RunFailed
from orchestrator.files import Record, replace_text, write_lines
from orchestrator.run.annotations import Annotations
from orchestrator.run.batching import Renders, ScoredBatch, count_tokens, make_request
from orchestrator.run.rundir import RunDir
from orchestrator.run.stages import JudgedSampling
from rewards.config import ObjectiveConfig
from rewards.environment import derive_seed, model_folder
from rewards.judge_sections import HuggingFaceScorerConfig, refreshed, single
from rewards.normalize import Normalizer
from rewards.prompts import Prompt
from rewards.simplex import PreferenceSampler

if TYPE_CHECKING:
    from orchestrator.config import Recipe
    from orchestrator.tasks.fitting.refitting import Refit

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
        self._annotated = tuple(objective for objective in recipe.objectives if objective.annotator is not None)
        self._names = tuple(objective.name for objective in self._annotated)
        self._columns = [recipe.objective_names.index(name) for name in self._names]
        self._folder: Path | None = None

    def is_due(self, step: int) -> bool:
        """Before the step is sampled."""
        return self.recipe.refresh is not None and step > 0 and step % self.recipe.refresh.every == 0

    def restore(self, step: int) -> Normalizer:
        """The judges as they were before `step`; returns what their scores are relative to.

        Raises:
            BadInput: a refresh's record is damaged.
        """
        folder = self.run_dir.judges_before(step, NORMALIZER)
        if folder is not None and self.recipe.refresh is not None:
            try:
                record = json.loads((folder / NORMALIZER).read_text(encoding="utf-8"))
                self.normalizer = Normalizer.from_dict(record)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise BadInput(f"{folder / NORMALIZER}: must hold the judges' normaliser: {error}") from None
            self._use(folder)
        return self.normalizer

    def __call__(self, step: int, policy_version: int) -> Refreshed:
        """Sample, ask the annotators, fit, and have the judges replaced.

        Raises:
            ComponentLost: an annotator did not answer by `refresh.timeout_s`.
            RunFailed: a fit diverged, or a fitted judge scores nothing.
        """
        from orchestrator.tasks.fitting.config import Optimization
        from orchestrator.tasks.fitting.refitting import Refit, refit

        config = self.recipe.refresh
        assert config is not None
        folder = self.run_dir.judges_path(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rollouts = self.sampler.sample(self._requests(step), policy_version, judges=()).rollouts
        old_BNA = self._scores(rollouts)
        accuracy, labels = dict[str, float](), 0
        jobs: list[Refit] = []
        for told_BN, old_BN, objective in zip(
            self._told(rollouts), np.moveaxis(old_BNA, -1, 0), self._annotated, strict=True
        ):
            rows = list(comparisons(rollouts, told_BN, old_BN, sharpness=config.sharpness))
            write_lines(folder / PAIRS.format(name=objective.name), (row for row, _ in rows))
            if rows:
                accuracy[objective.name] = float(np.mean([agrees for _, agrees in rows]))
                jobs += self._jobs(objective, folder, step)
            else:
                self.say(f"warning: the annotator of {objective.name} told no two answers apart; its judge stays")
                self._keep(objective, folder)
            labels += len(rows)
        optimization = Optimization(
            steps=config.steps,
            batch_size=config.prompts_per_step,
            learning_rate=config.learning_rate,
            schedule="constant",
        )
        refit(jobs, optimization, device=config.device, silence_s=config.timeout_s, progress=self.say)
        self._use(folder)
        self.normalizer = carried_over(self.normalizer, self._columns, old_BNA, self._scores(rollouts))
        replace_text(folder / NORMALIZER, json.dumps(self.normalizer.to_record()) + "\n")
        told = ", ".join(f"{name} ranked {share:.1%} as its annotator" for name, share in accuracy.items())
        self.say(f"judges fitted further to {labels} new labels before step {step + 1}: {told or 'none'}")
        return Refreshed(
            normalizer=self.normalizer, labels=labels, generated_tokens=count_tokens(rollouts), accuracy=accuracy
        )

    def rescored(self, batch: ScoredBatch) -> ScoredBatch:
        """A batch that was sampled before the judges were replaced, as they score it now."""
        scores_BNK = batch.scores.copy()
        scores_BNK[..., self._columns] = self._scores(batch.rollouts)
        return replace(batch, scores=scores_BNK)

    def _scores(self, rollouts: Sequence[Rollout]) -> np.ndarray:
        """[B, N, A] by the judges of the moment."""
        return self.sampler.score(rollouts, "current", self._names, timeout_s=self.recipe.rollout.generate_timeout_s)

    def _told(self, rollouts: Sequence[Rollout]) -> Iterator[np.ndarray]:
        """[B, N] by each annotator, which is asked about what it has not answered."""
        annotations, config = Annotations(self.run_dir.path), self.recipe.refresh
        assert config is not None
        for name in self._names:
            said_BN = annotations.of(rollouts, name)
            if said_BN is None:
                said_BN = self.sampler.score(rollouts, "annotator", (name,), timeout_s=config.timeout_s)[..., 0]
                annotations.add(rollouts, name, said_BN)
            yield said_BN

    def _use(self, folder: Path) -> None:
        self.sampler.use_judges(folder)
        self._folder = folder

    def _requests(self, step: int) -> list[GenerationRequest]:
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

    def _keep(self, objective: ObjectiveConfig, folder: Path) -> None:
        """The objective's judges as they are, in the folder of the others."""
        for now, then in self._models(objective, folder):
            shutil.copytree(model_folder(now.model), then.model)

    def _jobs(self, objective: ObjectiveConfig, folder: Path, step: int) -> "Iterator[Refit]":
        """Each judge goes on from where it stands, with all labels of the run."""
        from orchestrator.tasks.fitting.refitting import Refit

        models = self._models(objective, folder)
        files = tuple(sorted(folder.parent.glob(f"step-*/{PAIRS.format(name=objective.name)}")))
        for member, (now, then) in enumerate(models):
            yield Refit(
                model=now.model,
                output=Path(then.model),
                template=now.template,
                max_length=now.max_length,
                pairs=files,
                share=MEMBER_SHARE if len(models) > 1 else 1.0,
                drawn_by=derive_seed(self.recipe.seed, "member", objective.name, member),
                seed=derive_seed(self.recipe.seed, "refresh", step, objective.name, member) % 2**31,
            )

    def _models(
        self, objective: ObjectiveConfig, folder: Path
    ) -> list[tuple[HuggingFaceScorerConfig, HuggingFaceScorerConfig]]:
        """(as it stands, as it will be in `folder`) of each reward model of the objective."""
        before = self._folder
        now = objective.scorer if before is None else refreshed(objective.name, objective.scorer, before)
        both = zip(single(now), single(refreshed(objective.name, objective.scorer, folder)), strict=True)
        return [
            (one, other)
            for one, other in both
            if isinstance(one, HuggingFaceScorerConfig) and isinstance(other, HuggingFaceScorerConfig)
        ]


def comparisons(
    rollouts: Sequence[Rollout], told: np.ndarray, judged: np.ndarray, *, sharpness: float | None
) -> Iterator[tuple[Record, bool]]:
    """Every two different responses that the annotator tells apart, and whether the judge ranks them alike.

    Args:
        told: [B, N] the annotator's scores; NaN: it said nothing.
        judged: [B, N] the judge's.
        sharpness: see `RefreshConfig.sharpness`.

    Yields:
        {"prompt", "chosen", "rejected", "probability"} and the judge's agreement.
    """
    for rollout, said_N, judged_N in zip(rollouts, told, judged, strict=True):
        for first, second in itertools.combinations(range(len(said_N)), 2):
            gap = float(said_N[first] - said_N[second])
            if not math.isfinite(gap) or gap == 0 or rollout.responses[first].text == rollout.responses[second].text:
                continue
            better, worse = (first, second) if gap > 0 else (second, first)
            row = {
                "prompt": rollout.request.prompt.plain,
                "chosen": rollout.responses[better].text,
                "rejected": rollout.responses[worse].text,
                "probability": 1.0 if sharpness is None else 1 / (1 + math.exp(-sharpness * abs(gap))),
            }
            yield row, bool(judged_N[better] > judged_N[worse])


def carried_over(normalizer: Normalizer, columns: Sequence[int], old: np.ndarray, new: np.ndarray) -> Normalizer:
    """The normaliser under which the same responses have by new scores the mean and the spread that they had by old.

    A Bradley-Terry model may shift and stretch its scores freely. Judges without any spread keep their normaliser, as
    do objectives that stand in no column.

    Args:
        columns: [A] objectives whose judges changed.
        old, new: [..., A] scores before and after.

    Raises:
        RunFailed: fewer than two responses have both scores of an objective.
    """
    stretch_K, shift_K = np.ones(len(normalizer.mean)), np.zeros(len(normalizer.mean))
    for column, before, after in zip(columns, np.moveaxis(old, -1, 0), np.moveaxis(new, -1, 0), strict=True):
        both = np.isfinite(before) & np.isfinite(after)
        if both.sum() < 2:
            raise RunFailed(
                f"objective {normalizer.objectives[column]!r}: its judge, fitted further, gave {both.sum()} of "
                f"{both.size} answers a score"
            )
        if before[both].std() > 0 and after[both].std() > 0:
            stretch_K[column] = after[both].std() / before[both].std()
            shift_K[column] = after[both].mean() - stretch_K[column] * before[both].mean()
    return normalizer.moved(stretch_K, shift_K)
