"""Everything the `smollm2` recipes read: SmolLM2-135M-Instruct taught to read w, and questions.

As it comes the model does not read w at all, and what does not read w is never steered by it. So the start is fitted on
its own answers: each question is answered several times, the recipe's own judges score every answer, and it is learned
under the w that says what it is. A contrast with other w is what teaches to read: plain cross-entropy, whose gradient
is nearly all about content, leaves w unread after twice as many steps.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.config import RolloutConfig
from orchestrator.errors import BadInput
from orchestrator.files import write_lines
from orchestrator.plan import load_tokenizer
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.fitting.config import Optimization, PolicyFitConfig
from orchestrator.tasks.smollm2.answers import sample_answers, whole_sentences
from orchestrator.tasks.smollm2.questions import split_questions
from orchestrator.tasks.smollm2.source import find_weights, hub_folder, package_folder, save_weights
from rewards.config import ConditioningConfig, Section
from rewards.environment import native_dtype
from rewards.judges import build_scorer
from rewards.preferences import quantize

if TYPE_CHECKING:
    from orchestrator.config import Recipe


SHARPNESS = 1.28
"""Of w = softmax(SHARPNESS z): by it the weights of two independent normal scores are about uniform."""


class Sizes(Section):
    """Of the preparation; the defaults take about ten minutes on two CPU cores with AMX."""

    heldout: int = 40
    """Questions that are never trained on."""
    questions: int = 150
    """Training questions whose answers the start learns from."""
    answers: int = 5
    """To each of them."""
    contrast: float = 0.5
    optimization: Optimization = Optimization(
        epochs=1, batch_size=8, learning_rate=1e-4, warmup_steps=10, final_learning_rate_ratio=0.1
    )


def build_smollm2(
    directory: Path,
    recipe: "Recipe",
    *,
    sizes: Sizes | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Build (or find) DIR/policy and DIR/prompts/{train,heldout}.jsonl for this recipe; returns the manifest.

    Raises:
        BadInput: the weights are nowhere, cut short or another model's, or a judge cannot be loaded.
        RunFailed: the model could not be sampled from.
    """
    assert recipe.assets is not None
    sizes = sizes or Sizes()
    key = {
        "sizes": sizes.model_dump(mode="json"),
        "code": code_digest("smollm2", "fitting"),
        "source": recipe.assets.source,
        "objectives": {objective.name: objective.scorer.model_dump(mode="json") for objective in recipe.objectives},
        "preferences": recipe.preferences.model_dump(mode="json"),
        "answers": _sampling(recipe).model_dump(mode="json"),
        "seed": recipe.seed,
    }
    build = partial(run_apart, _build, progress, recipe=recipe, sizes=sizes)
    return build_once(directory, key, lambda folder: build(folder=folder), progress=progress)


def _build(progress: Callable[[str], None], *, folder: Path, recipe: "Recipe", sizes: Sizes) -> dict[str, Any]:
    from orchestrator.tasks.fitting.supervised import fit_policy

    assert recipe.assets is not None
    started = time.monotonic()
    found = find_weights(recipe.assets.source, hub=hub_folder, package=package_folder)
    progress(f"SmolLM2-135M-Instruct from {found.where}")
    save_weights(found, folder / "base")
    training, heldout = split_questions(heldout=sizes.heldout, seed=recipe.seed)
    for name, questions in (("train", training), ("heldout", heldout)):
        write_lines(folder / "prompts" / f"{name}.jsonl", ({"prompt": question} for question in questions))

    asked = training[: sizes.questions]
    tokenizer = load_tokenizer(str(folder / "base"))
    prompt_ids = [plain_prompt(tokenizer, question, recipe.preferences.conditioning) for question in asked]
    answers = run_apart(
        sample_answers,
        progress,
        folder / "base",
        prompt_ids,
        _sampling(recipe),
        per_prompt=sizes.answers,
        seed=recipe.seed,
        silence_s=recipe.rollout.generate_timeout_s + recipe.rollout.start_timeout_s,
    )
    whole = [[text for text in map(whole_sentences, texts) if text] for texts in answers]
    rows = described_rows(asked, whole, score_answers(recipe, asked, whole), decimals=recipe.preferences.decimals)
    progress(f"{len(rows)} answers to learn from, after {time.monotonic() - started:.0f} s")
    report = fit_policy(
        PolicyFitConfig(
            output=str(folder / "policy"),
            model=str(folder / "base"),
            objectives=recipe.objective_names,
            preferences=recipe.preferences,
            optimization=sizes.optimization.model_copy(update={"bf16": native_dtype() == "bfloat16"}),
            contrast=sizes.contrast,
            attention="auto" if native_dtype() == "float32" else "eager",
            max_length=recipe.rollout.max_model_len,
            seed=recipe.seed,
        ),
        rows,
        progress=progress,
    )
    return {
        "weights": found.where,
        "rows": len(rows),
        "heldout_loss": report.heldout_loss,
        "seconds": time.monotonic() - started,
    }


def plain_prompt(tokenizer: Any, question: str, conditioning: ConditioningConfig) -> list[int]:
    """Token ids of a question as the recipe's chat asks it, without w."""
    messages = [{"role": "user", "content": question}]
    if conditioning.system is not None and "{weights}" not in conditioning.system:
        messages.insert(0, {"role": "system", "content": conditioning.system})
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


def score_answers(recipe: "Recipe", questions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Of each question, [its answers, K] by the recipe's judges, normalised over all of them; 0 mean, deviation 1.

    Raises:
        BadInput: a judge fails, or scores all answers alike.
    """
    prompts = [question for question, texts in zip(questions, answers, strict=True) for _ in texts]
    responses = [text for texts in answers for text in texts]
    columns = []
    for objective in recipe.objectives:
        scores = build_scorer(objective.scorer).score(prompts, responses)
        spread = float(np.nanstd(scores))
        if not spread > 0:
            raise BadInput(f"objective {objective.name!r}: its scorer tells the answers of the start not apart")
        columns.append((scores - np.nanmean(scores)) / spread)
    scores_NK = np.stack(columns, axis=1)
    ends = np.cumsum([len(texts) for texts in answers])
    return [scores_NK[end - len(texts) : end] for texts, end in zip(answers, ends, strict=True)]


def described_rows(
    questions: Sequence[str], answers: Sequence[Sequence[str]], scores: Sequence[np.ndarray], *, decimals: int
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


def _sampling(recipe: "Recipe") -> RolloutConfig:
    """As the recipe's engines sample, by one engine on CPU."""
    return recipe.rollout.model_copy(update={"num_gpus": 0, "colocated": False, "dtype": native_dtype(), "num_cpus": 2})
