"""One objective's score for each response.

Scorers see the plain prompt, never the weights. A single missing score (None, NaN, infinity) is NaN and costs that
response only; a scorer that fails as a whole raises ScorerError. Shape: N responses.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rewards.config import HTTPScorerConfig, HuggingFaceScorerConfig, PythonScorerConfig, ScorerConfig


class ScorerError(RuntimeError):
    """A scorer that cannot work: not loadable, unreachable after its retries, or answering with nonsense."""


class Scorer(Protocol):
    """Scores responses on one objective; larger is better."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score ``responses[i]`` as an answer to ``prompts[i]``: float64 [N], NaN where the score is missing."""
        ...


def build_scorer(config: ScorerConfig) -> Scorer:
    """Load the scorer a recipe names. Raises ScorerError when it cannot be loaded."""
    if isinstance(config, PythonScorerConfig):
        return PythonScorer(config)
    if isinstance(config, HTTPScorerConfig):
        from rewards.remote import HTTPScorer

        return HTTPScorer(config)
    from rewards.classifier import ClassifierScorer

    return ClassifierScorer(config)


def check_scorer(config: ScorerConfig, where: str) -> list[str]:
    """Problems that can be known before anything loads, one line each, starting with ``where`` (the recipe's key)."""
    if isinstance(config, PythonScorerConfig):
        try:
            load_function(config.function)
        except ScorerError as error:
            return [f"{where}.function: {error}"]
        return []
    if isinstance(config, HTTPScorerConfig):
        if config.token_env is not None and not os.environ.get(config.token_env):
            return [f"{where}.token_env: environment variable {config.token_env!r} is not set"]
        return []
    return [f"{where}.model: {problem}" for problem in _folder_problems(config)]


def load_function(dotted: str) -> Callable[..., Any]:
    """Import ``package.module:name``. Raises ScorerError saying which part is missing."""
    module_name, _, attribute = dotted.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise ScorerError(f"cannot import {module_name!r} of {dotted!r}: {describe(error)}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ScorerError(f"module {module_name!r} has no {attribute!r} (from {dotted!r})")
        found = getattr(found, name)
    if not callable(found):
        raise ScorerError(f"{dotted!r} must be a function, got {type(found).__name__}")
    return found


class PythonScorer:
    """Calls ``fn(prompts, responses, **options)``."""

    def __init__(self, config: PythonScorerConfig):
        self._config = config
        self._function = load_function(config.function)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        check_aligned(prompts, responses)
        where = f"scorer {self._config.function}"
        try:
            values = self._function(list(prompts), list(responses), **self._config.options)
        except Exception as error:  # whatever it raises, the scorer has failed and the run needs to know which one
            raise ScorerError(f"{where} raised {describe(error)}") from error
        return as_scores(values, len(responses), where=where)


def as_scores(values: Any, count: int, *, where: str) -> np.ndarray:
    """What a scorer returned -> float64 [N]; None, NaN and infinities become NaN.

    Raises ScorerError for a wrong length or an entry that is no number.
    """
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise ScorerError(f"{where} must return {count} scores, got {type(values).__name__}")
    entries = list(values)
    if len(entries) != count:
        raise ScorerError(f"{where} must return {count} scores, got {len(entries)}")
    scores_N = np.full(count, np.nan)
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        if isinstance(entry, (str, bytes)):
            raise ScorerError(f"{where}: score {index} must be a number or null, got {entry[:40]!r}")
        try:
            scores_N[index] = float(entry)
        except (TypeError, ValueError, OverflowError):
            raise ScorerError(f"{where}: score {index} must be a number or null, got {type(entry).__name__}") from None
    scores_N[~np.isfinite(scores_N)] = np.nan
    return scores_N


def check_aligned(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Refuse prompts and responses of different number: a caller's mistake, not a scorer's."""
    if len(prompts) != len(responses):
        raise ValueError(f"as many prompts as responses are needed, got {len(prompts)} and {len(responses)}")


def describe(error: Exception) -> str:
    """An exception on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def looks_like_path(model: str) -> bool:
    """Whether a model string means a folder rather than a hub id."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()


def _folder_problems(config: HuggingFaceScorerConfig) -> list[str]:
    if not looks_like_path(config.model):
        return []
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        return [f"folder {config.model!r} does not exist"]
    if not (folder / "config.json").is_file():
        return [f"folder {config.model!r} holds no config.json"]
    try:
        model_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(name) for name in model_config.get("architectures") or []]
        # The library's own default of two labels is what an absent entry means.
        labels = len(model_config.get("id2label") or [None] * int(model_config.get("num_labels", 2)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return [f"config.json of {config.model!r} cannot be read: {describe(error)}"]
    problems = []
    if architectures and not any("SequenceClassification" in name for name in architectures):
        problems.append(f"folder {config.model!r} holds {', '.join(architectures)}, not a sequence classifier")
    elif config.label >= labels:
        problems.append(f"folder {config.model!r} has {labels} labels, so label must be < {labels}, got {config.label}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        problems.append(f"folder {config.model!r} holds no tokenizer")
    return problems
