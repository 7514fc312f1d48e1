"""One objective's score for each response.

Scorers see the plain prompt, never the weights. A single missing score (None, NaN, infinity) is NaN and costs that
response only; a scorer that fails as a whole raises ScorerError. Shape: N responses.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NoReturn, Protocol

import numpy as np

from rewards.environment import describe, process_environment
from rewards.judge_sections import PythonScorerConfig
from rewards.paths import is_file
from rewards.prompts import Prompt, columns_of
from rewards.sources import load_file

PROBE_PROMPT, PROBE_RESPONSE = Prompt(text="How do I boil an egg?"), "In water, for eight minutes."
"""What a scorer is asked about before a run, the prompt where the run's own are not known."""
FUNCTION_PROBE_S = 10.0
"""Longest wait for a function's first score; importing torch alone takes some seconds."""


Columns = Mapping[str, Sequence[Any]]
"""Column of the data -> its value for each response, which a judge may compare with."""
NO_COLUMNS: Columns = {}


class ScorerError(RuntimeError):
    """A scorer that cannot work: not loadable, unreachable after its retries, or answering with nonsense."""


class Scorer(Protocol):
    """Scores responses on one objective; larger is better."""

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns = NO_COLUMNS) -> np.ndarray:
        """Score ``responses[i]`` as an answer to ``prompts[i]``: float64 [N], NaN where the score is missing.

        Args:
            columns: those that the recipe asks for; a scorer reads its own of them.
        """
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
    """Calls ``fn(prompts, responses, **columns, **options)``."""

    def __init__(self, config: PythonScorerConfig):
        self._config = config
        self._function = load_function(config.function)

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns = NO_COLUMNS) -> np.ndarray:
        check_aligned(prompts, responses)
        where = f"scorer {self._config.function}"
        own = {name: list(columns[name]) for name in self._config.columns}
        try:
            values = self._function(list(prompts), list(responses), **own, **self._config.options)
            return as_scores(values, len(responses), where=where)  # of a generator, the function goes on in here
        except ScorerError:
            raise
        except (Exception, SystemExit) as error:  # whatever it raises, the run needs to know which scorer has failed
            raise ScorerError(f"{where} raised {describe(error)}") from error


def asked_apart(config: PythonScorerConfig, prompt: Prompt) -> str | None:
    """What is wrong with a function that cannot score a first response; None also where it takes its time.

    It is loaded and called in a process of its own, without a GPU: what it loads, or never returns from, stays there.
    """
    columns = columns_of([prompt])
    asked = {"config": config.model_dump(mode="json"), "prompt": prompt.plain, "columns": columns}
    # Not `multiprocessing`, which would run the main script again.
    own_path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from rewards.scorers import answer_once; answer_once()"],
            input=json.dumps(asked, default=str),
            env=os.environ | process_environment(threads=1, num_gpus=0) | own_path,
            timeout=FUNCTION_PROBE_S,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return None
    if not done.stdout:
        return f"scorer {config.function} ended its process, with exit code {done.returncode}"
    problem: str | None = json.loads(done.stdout)
    return problem


def answer_once() -> NoReturn:
    """The other end of `asked_apart`: asked on standard input, it says on standard output what is wrong."""
    asked = json.load(sys.stdin)
    answer, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    for printed in (1, 2):
        os.dup2(nowhere, printed)
    problem = None
    try:
        scorer = PythonScorer(PythonScorerConfig(**asked["config"]))
        scorer.score([asked["prompt"]], [PROBE_RESPONSE], asked["columns"])
    except ScorerError as error:
        problem = str(error)
    os.write(answer, json.dumps(problem).encode())
    os._exit(0)  # whatever threads the function has left


def as_scores(values: Any, count: int, *, where: str) -> np.ndarray:
    """What a scorer returned -> float64 [N]; None, NaN and infinities become NaN.

    Raises ScorerError for what has no order of its own, a wrong length, or an entry that is no real number.
    """
    # bytes are numbers to Python, and a set gives its entries in any order
    not_scores = (str, bytes, bytearray, memoryview, Mapping, Set)
    if isinstance(values, not_scores) or not isinstance(values, Iterable):
        raise ScorerError(f"{where} must return {count} scores in order, got {type(values).__name__}")
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
            if isinstance(entry, np.complexfloating):
                raise TypeError  # float() would take its real part
            scores_N[index] = float(entry)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor
            raise ScorerError(f"{where}: score {index} must be a number or null, got {type(entry).__name__}") from None
    scores_N[~np.isfinite(scores_N)] = np.nan
    return scores_N


def check_aligned(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Refuse prompts and responses of different number: a caller's mistake, not a scorer's."""
    if len(prompts) != len(responses):
        raise ValueError(f"as many prompts as responses are needed, got {len(prompts)} and {len(responses)}")
