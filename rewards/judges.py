"""From a recipe's section of a judge to a scorer; what can be known of one before anything loads."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.classifier import ClassifierScorer, load_classifier, load_padding_tokenizer, make_reader
from rewards.ensemble import EnsembleScorer, scales_of
from rewards.environment import describe, local_folder
from rewards.judge_sections import (
    EnsembleScorerConfig,
    HTTPScorerConfig,
    HuggingFaceScorerConfig,
    PythonScorerConfig,
    ScorerConfig,
)
from rewards.model_config import check_weights, max_positions, read_config, vocabulary_size
from rewards.model_files import ModelError
from rewards.prompts import Prompt
from rewards.remote import HTTPScorer, asked_once
from rewards.scorers import PROBE_PROMPT, Columns, PythonScorer, Scorer, ScorerError, asked_apart, load_function
from rewards.vocabulary import check_inserted, check_padding, check_vocabulary

_READING = threading.Lock()
"""transformers imports its parts as they are asked for, which threads must not do side by side."""


def build_scorer(config: ScorerConfig) -> Scorer:
    """Load the scorer a recipe names. Raises ScorerError when it cannot be loaded."""
    if isinstance(config, PythonScorerConfig):
        return PythonScorer(config)
    if isinstance(config, HTTPScorerConfig):
        return HTTPScorer(config)
    if isinstance(config, EnsembleScorerConfig):
        return EnsembleScorer(config, [build_scorer(member) for member in config.members])
    return ClassifierScorer(config)


Scores = Callable[[Sequence[str], Sequence[str], Columns], np.ndarray]
"""(prompts, responses, columns) -> float64 [N, K], as `rewards.scorers.Scorer.score` for K objectives."""


def build_scorers(configs: Sequence[ScorerConfig]) -> Scores:
    """Load the scorers of several objectives; those that are labels of one classifier share it. Raises ScorerError."""
    members: dict[ScorerConfig | int, list[int]] = {}
    for index, config in enumerate(configs):
        shared = config.classifier if isinstance(config, HuggingFaceScorerConfig) else index
        members.setdefault(shared, []).append(index)
    loaded = [(indices, _load([configs[index] for index in indices])) for indices in members.values()]

    def score(prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> np.ndarray:
        scores_NK = np.empty((len(responses), len(configs)))
        for indices, score_some in loaded:
            scores_NK[:, indices] = score_some(prompts, responses, columns)
        return scores_NK

    return score


def _load(configs: Sequence[ScorerConfig]) -> Scores:
    """Labels of one classifier, or one scorer of another kind."""
    classifiers = [config for config in configs if isinstance(config, HuggingFaceScorerConfig)]
    if classifiers:
        classifier = ClassifierScorer(*classifiers)
        return lambda prompts, responses, columns: classifier.score_each(prompts, responses)
    scorer = build_scorer(configs[0])
    return lambda prompts, responses, columns: scorer.score(prompts, responses, columns)[:, None]


def check_scorer(config: ScorerConfig, where: str, *, prompt: Prompt = PROBE_PROMPT, here: bool = True) -> list[str]:
    """Problems that can be known before anything loads, one line each, starting with ``where`` (the recipe's key).

    Args:
        prompt: one that a server or a function is asked about, if it has the columns that it asks for.
        here: whether a function needs no more than this machine has, so that it can be asked.
    """
    if isinstance(config, EnsembleScorerConfig):
        problems = [
            problem
            for index, member in enumerate(config.members)
            for problem in check_scorer(member, f"{where}.members.{index}", prompt=prompt, here=here)
        ]
        return problems or _scale_problems(config, where)
    if isinstance(config, PythonScorerConfig):
        asks = here and prompt.columns.keys() >= set(config.columns)
        problem = asked_apart(config, prompt) if asks else _import_problem(config)
        return [] if problem is None else [f"{where}.function: {problem}"]
    if isinstance(config, HTTPScorerConfig):
        if config.token_env is not None and not os.environ.get(config.token_env):
            return [f"{where}.token_env: environment variable {config.token_env!r} is not set"]
        problem = asked_once(config, prompt) if prompt.columns.keys() >= set(config.columns) else None
        return [] if problem is None else [f"{where}.url: {problem}"]
    with _READING:
        return [f"{where}.model: {problem}" for problem in _folder_problems(config)]


def _scale_problems(config: EnsembleScorerConfig, where: str) -> list[str]:
    try:
        scales_of(config)
    except ScorerError as error:
        return [f"{where}: {error}"]
    return []


def _import_problem(config: PythonScorerConfig) -> str | None:
    try:
        load_function(config.function)
    except ScorerError as error:
        return str(error)
    return None


def _folder_problems(config: HuggingFaceScorerConfig) -> list[str]:
    folder = local_folder(config.model)
    if folder is None:
        return []
    if not folder.is_dir():
        return [f"folder {config.model!r} does not exist"]
    if not (folder / "config.json").is_file():
        return [f"folder {config.model!r} holds no config.json"]
    try:
        model_config = read_config(folder)
        architectures = [str(name) for name in model_config.get("architectures") or []]
        # The library's own default of two labels is what an absent entry means.
        labels = len(model_config.get("id2label") or [None] * int(model_config.get("num_labels", 2)))
    except ModelError as error:
        return [str(error)]
    except (ValueError, TypeError) as error:
        return [f"config.json of {config.model!r} cannot be read: {describe(error)}"]
    problems = []
    if architectures and not any("SequenceClassification" in name for name in architectures):
        problems.append(f"folder {config.model!r} holds {', '.join(architectures)}, not a sequence classifier")
    elif config.label >= labels:
        problems.append(f"folder {config.model!r} has {labels} labels, so label must be < {labels}, got {config.label}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        problems.append(f"folder {config.model!r} holds no tokenizer")
    if not problems:
        try:
            _check_reading(config, folder, model_config, labels)
        except (ModelError, ScorerError) as error:
            problems.append(str(error))
    return problems


def _check_reading(config: HuggingFaceScorerConfig, folder: Path, model_config: dict[str, Any], labels: int) -> None:
    """What loading the judge, and its first response, would meet. Raises ModelError or ScorerError."""
    score, labels = ("score", labels) if config.head is None else (config.head, 1)
    compared = check_weights(folder, model_config, labels=labels, score=score)
    rows = vocabulary_size(model_config)
    check_vocabulary(folder, rows, [config.template])
    check_padding(folder, model_config, rows)
    if not compared:
        load_classifier(config, device_map="meta")
    where = f"classifier {config.model!r}"
    tokenizer = load_padding_tokenizer(config.model, where)
    check_inserted(tokenizer, rows, where)
    make_reader(config, tokenizer, max_positions(model_config), where=where)
