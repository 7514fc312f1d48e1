"""Everything the `smollm2` recipes read: SmolLM2-135M-Instruct taught to read w, and questions.

As it comes the model does not read w at all, and what does not read w is never steered by it. So the start is fitted on
its own answers: each question is answered several times, every answer is scored by the recipe's own judges, and under a
vector w the answer with the highest w . normalised scores is the one to learn.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.config import RolloutConfig
from orchestrator.errors import BadInput
from orchestrator.files import write_lines
from orchestrator.plan import load_tokenizer
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.fitting.config import Optimization, PolicyFitConfig
from orchestrator.tasks.smollm2.answers import sample_answers, whole_sentences
from orchestrator.tasks.smollm2.questions import split_questions
from orchestrator.tasks.smollm2.source import find_weights, hub_folder, package_folder, save_weights
from rewards.config import Section
from rewards.environment import native_dtype
from rewards.judges import build_scorer
from rewards.preferences import quantize

if TYPE_CHECKING:
    from orchestrator.config import Recipe


class Sizes(Section):
    """Of the preparation; the defaults take about ten minutes on two CPU cores with AMX."""

    heldout: int = 40
    """Questions that are never trained on."""
    questions: int = 150
    """Training questions whose answers the start learns from."""
    answers: int = 8
    """To each of them, at temperature 1."""
    vectors: int = 4
    """w under which the best of the answers is learned, for each question."""
    optimization: Optimization = Optimization(
        epochs=1, batch_size=8, learning_rate=3e-5, warmup_steps=10, final_learning_rate_ratio=0.1
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
    return build_once(directory, key, lambda folder: _build(folder, recipe, sizes, progress), progress=progress)


def _build(folder: Path, recipe: "Recipe", sizes: Sizes, progress: Callable[[str], None]) -> dict[str, Any]:
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
    chat = [[{"role": "user", "content": question}] for question in asked]
    prompt_ids = [list(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]) for turn in chat]
    progress(f"answering {len(asked)} questions {sizes.answers} times ...")
    answers = sample_answers(
        folder / "base",
        prompt_ids,
        _sampling(recipe),
        per_prompt=sizes.answers,
        seed=recipe.seed,
        timeout_s=recipe.rollout.generate_timeout_s + recipe.rollout.start_timeout_s,
    )
    whole = [[text for text in map(whole_sentences, texts) if text] for texts in answers]
    rows = conditioned_rows(asked, whole, score_answers(recipe, asked, whole), vectors=sizes.vectors, seed=recipe.seed)
    progress(f"{len(rows)} answers to learn from, after {time.monotonic() - started:.0f} s")
    report = fit_policy(
        PolicyFitConfig(
            output=str(folder / "policy"),
            model=str(folder / "base"),
            objectives=recipe.objective_names,
            preferences=recipe.preferences,
            optimization=sizes.optimization.model_copy(update={"bf16": native_dtype() == "bfloat16"}),
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


def conditioned_rows(
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    scores: Sequence[np.ndarray],
    *,
    vectors: int,
    seed: int,
) -> list[dict[str, Any]]:
    """{"prompt", "response", "preference"}: under each of `vectors` w, a question's answer with the highest w . scores.

    Half of the vectors are corners, in turn, the others drawn from the whole simplex. A question with fewer than two
    answers is left out: nothing can be chosen there.

    Args:
        scores: [answers, K] of each question; an answer with a missing score is not chosen.
    """
    rng = np.random.default_rng([seed, 7])
    rows = []
    for index, (question, texts, scores_NK) in enumerate(zip(questions, answers, scores, strict=True)):
        known = np.isfinite(scores_NK).all(axis=1)
        if known.sum() < 2:
            continue
        num_objectives = scores_NK.shape[1]
        for turn in range(vectors):
            if turn % 2:
                preference = quantize(rng.dirichlet(np.ones(num_objectives)), 1)
            else:
                preference = np.eye(num_objectives)[(index + turn // 2) % num_objectives]
            values = np.where(known, scores_NK @ preference, -np.inf)
            best = int(values.argmax())
            rows.append({"prompt": question, "response": texts[best], "preference": preference.tolist()})
    return rows


def _sampling(recipe: "Recipe") -> RolloutConfig:
    """As the recipe's engines sample, by one engine on CPU."""
    return recipe.rollout.model_copy(update={"num_gpus": 0, "colocated": False, "dtype": native_dtype(), "num_cpus": 2})
