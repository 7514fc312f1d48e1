"""One objective's score for each response.

Scorers see the plain prompt, never the weights. A single missing score (None, NaN, infinity) is NaN and costs that
response only; a scorer that fails as a whole raises ScorerError. Shape: N responses.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from rewards.config import PythonScorerConfig
from rewards.environment import describe
from rewards.paths import is_file
from rewards.sources import load_file


class ScorerError(RuntimeError):
    """A scorer that cannot work: not loadable, unreachable after its retries, or answering with nonsense."""


class Scorer(Protocol):
    """Scores responses on one objective; larger is better."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score ``responses[i]`` as an answer to ``prompts[i]``: float64 [N], NaN where the score is missing."""
        ...


def load_function(dotted: str) -> Callable[..., Any]:
    """Import ``package.module:name`` or ``file.py:name``. Raises ScorerError saying which part is missing."""
    place, _, attribute = dotted.rpartition(":")
    try:
        module: Any = load_file(place) if is_file(place) else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise ScorerError(f"cannot import {place!r} of {dotted!r}: {describe(error)}") from error
    found = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            where = getattr(module, "__file__", None) or "built in"  # perhaps not the one that the user means
            raise ScorerError(f"module {place!r} ({where}) has no {attribute!r} (from {dotted!r})")
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
            return as_scores(values, len(responses), where=where)  # of a generator, the function goes on in here
        except ScorerError:
            raise
        except (Exception, SystemExit) as error:  # whatever it raises, the run needs to know which scorer has failed
            raise ScorerError(f"{where} raised {describe(error)}") from error


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
