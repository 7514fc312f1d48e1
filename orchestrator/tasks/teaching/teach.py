"""A start that reads w, from a model that does not: what does not read w is never steered by it.

The model is fitted on its own answers. Each question is answered several times, the recipe's own judges score every
answer, and it is learned under the w that says what it is. A contrast with other w is what teaches to read: plain
cross-entropy, whose gradient is nearly all about content, leaves w unread after twice as many steps.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.config import RolloutConfig
from learner.types import sha256_of
from orchestrator.cards import installed_gpus
from orchestrator.errors import BadInput
from orchestrator.inputs import load_tokenizer
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.fitting.config import Optimization, PolicyFitConfig
from orchestrator.tasks.teaching.answers import sample_answers
from rewards.config import ConditioningConfig
from rewards.environment import native_dtype
from rewards.judge_sections import HuggingFaceScorerConfig, ScorerConfig, SingleScorerConfig, each_changed, single
from rewards.judges import build_scorers
from rewards.paths import is_file
from rewards.preferences import PromptRenderer
from rewards.prompts import Prompt, columns_of
from rewards.sampling import SamplingSection
from rewards.simplex import quantize

if TYPE_CHECKING:
    from orchestrator.config import Recipe

SHARPNESS = 2.0
"""Of w = softmax(SHARPNESS z): with two independent normal scores a seventh of the answers stands at either corner.
Fewer, and 1.0 against 0.0, which share their digits with 0.0 against 1.0, are read the wrong way round."""

WEIGHTS = re.compile(r"\s*\S*\{weights\}\S*")
"""Of a template: where w stands, with the brackets around it and the space before."""


def taught_from(recipe: "Recipe") -> dict[str, Any]:
    """All of the recipe that a taught policy depends on, but for its model and prompts; for `build_once`."""
    assert recipe.assets is not None
    scorers = {objective.name: objective.scorer for objective in recipe.objectives}
    judges = [judge for scorer in scorers.values() for judge in single(scorer)]
    files = [judge.function.rpartition(":")[0] for judge in judges if judge.type == "python"]
    return {
        "teaching": recipe.assets.teaching.model_dump(mode="json"),
        "objectives": {name: scorer.model_dump(mode="json") for name, scorer in scorers.items()},
        "functions": {file: sha256_of(Path(file)) for file in files if is_file(file)},
        "preferences": recipe.preferences.model_dump(mode="json"),
        "sampling": recipe.rollout.model_dump(mode="json", include={*SamplingSection.model_fields, "max_model_len"}),
        "seed": recipe.seed,
    }


def teach_to_read(
    progress: Callable[[str], None], folder: Path, base: str, prompts: Sequence[Prompt], recipe: "Recipe"
) -> dict[str, Any]:
    """Write FOLDER/policy, which reads w; returns what there is to report.

    Args:
        folder: what the recipe's `assets.directory` will be; judges that are built with it are there already.
        base: folder or hub id of the model that does not.
        prompts: to train on; the first `assets.teaching.prompts` of them are answered.

    Raises:
        BadInput: a judge cannot be loaded, fails, tells no answers apart, or asks for a column that no prompt has.
        RunFailed: the model could not be sampled from.
    """
    from orchestrator.tasks.fitting.supervised import fit_policy

    assert recipe.assets is not None
    started, teaching = time.monotonic(), recipe.assets.teaching
    asked = list(prompts[: teaching.prompts])
    for column in recipe.columns:
        if not all(column in prompt.columns for prompt in asked):
            raise BadInput(f"columns: a judge asks for {column!r}, which the prompts of this assets.build do not have")
    tokenizer = load_tokenizer(base)
    answers = run_apart(
        sample_answers,
        progress,
        base,
        [plain_prompt(tokenizer, prompt, recipe.preferences.conditioning) for prompt in asked],
        sampling_config(recipe, gpu=bool(recipe.rollout.num_gpus and installed_gpus())),
        per_prompt=teaching.answers,
        seed=recipe.seed,
        silence_s=recipe.rollout.generate_timeout_s + recipe.rollout.start_timeout_s,
    )
    answers = [list(filter(None, texts)) for texts in answers]
    scores = score_answers(judges_within(folder, recipe), asked, answers)
    rows = described_rows(asked, answers, scores, decimals=recipe.preferences.decimals)
    if not rows:
        raise BadInput(
            f"{base}: no answer to {len(asked)} prompts can be learned from: all are empty or without a score"
        )
    correlation_KK = correlation_within(scores)
    progress(f"{len(rows)} answers to learn from, after {time.monotonic() - started:.0f} s")
    report = fit_policy(
        PolicyFitConfig(
            output=str(folder / "policy"),
            model=base,
            objectives=recipe.objective_names,
            preferences=recipe.preferences,
            optimization=Optimization(
                epochs=teaching.epochs,
                batch_size=teaching.batch_size,
                learning_rate=teaching.learning_rate,
                warmup_steps=10,
                final_learning_rate_ratio=0.1,
                bf16="native",
            ),
            contrast=teaching.contrast,
            attention="eager",
            max_length=recipe.rollout.max_model_len,
            seed=recipe.seed,
        ),
        rows,
        progress=progress,
    )
    return {
        "rows": len(rows),
        "correlation": correlation_KK.tolist(),
        "heldout_loss": report.heldout_loss,
        "seconds": time.monotonic() - started,
    }


def correlation_within(scores: Sequence[np.ndarray]) -> np.ndarray:
    """[K, K] of the objectives over answers to the same question; how questions differ counts nothing.

    It is what a choice between answers meets. Over all answers together, two objectives that pull apart within every
    question may seem to go together, and the other way round.

    Args:
        scores: [answers, K] of each question; an answer with a missing score is left out.
    """
    known = [scores_NK[np.isfinite(scores_NK).all(axis=1)] for scores_NK in scores]
    return np.asarray(
        np.corrcoef(np.concatenate([each - each.mean(axis=0) for each in known if len(each)]), rowvar=False)
    )


def judges_within(folder: Path, recipe: "Recipe") -> dict[str, ScorerConfig]:
    """Objective -> its judge; one that lies in the recipe's assets is looked for in `folder`, which becomes them."""
    assert recipe.assets is not None
    assets = Path(recipe.assets.directory)

    def moved(judge: SingleScorerConfig) -> SingleScorerConfig:
        if isinstance(judge, HuggingFaceScorerConfig) and Path(judge.model).is_relative_to(assets):
            return judge.model_copy(update={"model": str(folder / Path(judge.model).relative_to(assets))})
        return judge

    return {objective.name: each_changed(objective.scorer, moved) for objective in recipe.objectives}


def plain_prompt(tokenizer: Any, prompt: Prompt | str, conditioning: ConditioningConfig) -> list[int]:
    """Token ids of a prompt as the recipe asks it, without w and what is written against it.

    Example: "Human: {prompt} {weights} Assistant:" asks "Human: why? Assistant:"
    """
    system = conditioning.system
    without_w = {
        "template": WEIGHTS.sub("", conditioning.template).strip(),
        "system": None if system is None or "{weights}" in system else system,
    }
    renderer = PromptRenderer(conditioning.model_copy(update=without_w), ("w",), 1, tokenizer)
    return renderer.token_ids(prompt, [1.0])


def score_answers(
    judges: Mapping[str, ScorerConfig], questions: Sequence[Prompt], answers: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Of each question, [its answers, K], normalised over all of them; 0 mean, deviation 1.

    Args:
        judges: of each objective, in order.

    Raises:
        BadInput: a judge fails, or scores all answers alike.
    """
    asked = [question for question, texts in zip(questions, answers, strict=True) for _ in texts]
    prompts, given = [prompt.plain for prompt in asked], columns_of(asked)
    responses = [text for texts in answers for text in texts]
    scores_NK = build_scorers(list(judges.values()))(prompts, responses, given)
    spread_K = np.nanstd(scores_NK, axis=0)
    for name, spread in zip(judges, spread_K, strict=True):
        if not spread > 0:
            raise BadInput(f"objective {name!r}: its scorer tells the answers of the start not apart")
    scores_NK = (scores_NK - np.nanmean(scores_NK, axis=0)) / spread_K
    ends = np.cumsum([len(texts) for texts in answers])
    return [scores_NK[end - len(texts) : end] for texts, end in zip(answers, ends, strict=True)]


def described_rows(
    questions: Sequence[Prompt], answers: Sequence[Sequence[str]], scores: Sequence[np.ndarray], *, decimals: int
) -> list[dict[str, Any]]:
    """{"prompt", "response", "preference"}: every answer under the w that says what it is, softmax(SHARPNESS z).

    Args:
        scores: normalised z [answers, K] of each question; an answer with a missing score is left out.
    """
    rows = []
    for question, texts, scores_NK in zip(questions, answers, scores, strict=True):
        known = np.isfinite(scores_NK).all(axis=1)
        exponents = np.exp(SHARPNESS * (scores_NK[known] - scores_NK[known].max(axis=1, keepdims=True)))
        preferences = quantize(exponents / exponents.sum(axis=1, keepdims=True), decimals)
        kept = [text for text, is_known in zip(texts, known, strict=True) if is_known]
        rows += [
            {"prompt": question, "response": text, "preference": preference.tolist()}
            for text, preference in zip(kept, preferences, strict=True)
        ]
    return rows


def sampling_config(recipe: "Recipe", *, gpu: bool) -> RolloutConfig:
    """As the recipe's engines sample, by one engine in a process of its own, on a GPU or on CPU."""
    own = {"colocated": False, "tensor_parallel_size": 1}
    if gpu:
        return recipe.rollout.model_copy(update={**own, "num_gpus": 1})
    return recipe.rollout.model_copy(update={**own, "num_gpus": 0, "dtype": native_dtype(), "threads": 2})
