"""From a recipe's `scorer` or `audit` section to a scorer; what can be known of one before anything loads."""

import os

from rewards.classifier import ClassifierScorer
from rewards.config import HTTPScorerConfig, HuggingFaceScorerConfig, PythonScorerConfig, ScorerConfig
from rewards.environment import describe, local_folder
from rewards.model_config import check_weights, read_config, vocabulary_size
from rewards.model_files import ModelError
from rewards.remote import HTTPScorer, asked_once
from rewards.scorers import PythonScorer, Scorer, ScorerError, load_function
from rewards.vocabulary import check_vocabulary


def build_scorer(config: ScorerConfig) -> Scorer:
    """Load the scorer a recipe names. Raises ScorerError when it cannot be loaded."""
    if isinstance(config, PythonScorerConfig):
        return PythonScorer(config)
    if isinstance(config, HTTPScorerConfig):
        return HTTPScorer(config)
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
        problem = asked_once(config)
        return [] if problem is None else [f"{where}.url: {problem}"]
    return [f"{where}.model: {problem}" for problem in _folder_problems(config)]


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
            check_weights(folder, model_config, head=False)
            check_vocabulary(folder, vocabulary_size(model_config), [config.template])
        except ModelError as error:
            problems.append(str(error))
    return problems
