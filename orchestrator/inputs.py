"""What a run reads, checked before it starts: prompts, policy, judges, and that w can be read in every prompt.

No weight is loaded; tokenizers and file headers are.
"""

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from orchestrator.sections import BUILT_MODELS
from rewards import pretrained
from rewards.config import ROLES
from rewards.environment import local_folder
from rewards.judge_sections import HuggingFaceScorerConfig, single
from rewards.judges import check_scorer
from rewards.model_config import check_weights, max_positions, vocabulary_size
from rewards.model_files import ModelError, known_folder, read_json, refuse_code, tensor_headers
from rewards.preferences import PromptRenderer
from rewards.prompts import Prompt, as_prompt
from rewards.sampling import read_token_ids
from rewards.scorers import PROBE_PROMPT, ScorerError, load_function
from rewards.simplex import PreferenceError, evaluation_grid
from rewards.vocabulary import (
    check_inserted,
    check_padding,
    check_token_ids,
    check_vocabulary,
    first_without_row,
    without_row,
)

if TYPE_CHECKING:
    from orchestrator.config import Recipe

PROMPTS_CHECKED = 20_000
"""Prompts whose token length is measured; beyond that the longest texts are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What training reads. Example: Inputs(train=(Prompt(...),), heldout=(Prompt(...),), renderer=...)"""

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    renderer: PromptRenderer
    longest_prompt_tokens: int
    mean_prompt_tokens: float
    """Of the training prompts whose length was measured, w included."""
    remarks: tuple[str, ...] = ()
    """What a person should know, one line each, although the run can start."""


def check_inputs(recipe: "Recipe") -> Inputs:
    """Read and check everything a run needs. Raises BadInput listing one problem per line."""
    found = _check(recipe, Model(name=recipe.policy.model, key="policy.model"), to_be_built=None)
    assert found is not None
    return found


def check_unbuilt(recipe: "Recipe") -> Inputs | None:
    """The same of what is there before the recipe's assets are built; None where prompts or model are among these.

    Prompts are measured by the tokenizer of `assets.model`, which the policy will have.
    """
    assert recipe.assets is not None
    base = recipe.assets.model
    model = None if base is None or base in BUILT_MODELS else Model(name=base, key="assets.model")
    return _check(recipe, model, to_be_built=Path(recipe.assets.directory))


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Example: Model(name="HuggingFaceTB/SmolLM2-135M-Instruct", key="policy.model")"""

    name: str
    key: str
    """Of the recipe."""


def _check(recipe: "Recipe", model: Model | None, *, to_be_built: Path | None) -> Inputs | None:
    """Args:
    to_be_built: what lies in this folder is not there yet.
    """

    def is_there(name: str) -> bool:
        return to_be_built is None or not Path(name).is_relative_to(to_be_built)

    problems = []
    if model is not None:
        problems = check_policy(model.name, model.key, max_model_len=recipe.rollout.max_model_len)
        problems = problems or _adapter_problems(recipe, model)
    prompts: dict[str, tuple[Prompt, ...]] = {}
    data_problems = []
    for key, limit in (("train", recipe.data.max_prompts), ("heldout", None)):
        if not is_there(getattr(recipe.data, key)):
            continue
        try:
            prompts[key] = tuple(
                load_prompts(
                    getattr(recipe.data, key), field=recipe.data.prompt_field, limit=limit, columns=recipe.columns
                )
            )
        except BadInput as error:
            data_problems.append(f"data.{key}: {error}")
    problems += _judge_problems(recipe, next(iter(prompts.get("train", ())), PROBE_PROMPT), is_there)
    problems += _check_functions(recipe) + data_problems
    if not data_problems and _are_the_same(recipe.data.train, recipe.data.heldout):
        problems.append(f"data.heldout: must be another file than data.train, got {recipe.data.heldout!r} for both")
    if problems:
        raise BadInput("\n".join(problems))
    if model is None or len(prompts) < 2:
        return None
    tokenizer, rows = load_tokenizer(model.name, model.key), _rows(model.name)
    try:
        check_inserted(tokenizer, rows, model.name)
    except ModelError as error:
        raise BadInput(f"{model.key}: {error}") from None
    renderer = make_renderer(recipe, tokenizer)
    with contextlib.suppress(PreferenceError):  # `check_renderer` says it better
        for vector in _written_vectors(recipe):
            token_ids = renderer.token_ids(prompts["heldout"][0], vector)
            _require_rows(renderer, token_ids, rows, model, where=f"preferences.conditioning, weights {vector}")
    check_renderer(renderer, [*prompts["train"], *prompts["heldout"]], where="preferences.conditioning")
    longest, mean = 0, 0.0
    for key in ("heldout", "train"):
        where = f"data.{key} {getattr(recipe.data, key)}"
        tokens = _prompt_lengths(recipe, renderer, prompts[key], model, where=where)
        longest, mean = max(longest, *tokens), statistics.fmean(tokens)
    trained = set(prompts["train"])
    shared = sum(prompt in trained for prompt in prompts["heldout"])
    remark = f"data.heldout: {shared} of its {len(prompts['heldout'])} prompts are trained on as well"
    return Inputs(
        train=prompts["train"],
        heldout=prompts["heldout"],
        renderer=renderer,
        longest_prompt_tokens=longest,
        mean_prompt_tokens=mean,
        remarks=(remark,) if shared else (),
    )


def _are_the_same(source: str, other: str) -> bool:
    here = os.path.exists(source) and os.path.exists(other)  # which data sets of the hub are not
    return os.path.samefile(source, other) if here else source == other


def _judge_problems(recipe: "Recipe", prompt: Prompt, is_there: Callable[[str], bool]) -> list[str]:
    """Of all judges that are there, one line each; servers and functions are asked about `prompt`."""
    with ThreadPoolExecutor() as pool:  # servers and functions may be slow to say nothing
        checks = [
            pool.submit(
                check_scorer,
                judge,
                f"objectives.{index}.{role}",
                prompt=prompt,
                # where it will run there may be a GPU, or files, that this machine has not
                here=not objective.num_gpus and not objective.node_labels,
            )
            for role in ROLES
            for index, objective in enumerate(recipe.objectives)
            if (judge := objective.judges.get(role)) is not None
            and all(is_there(each.model) for each in single(judge) if isinstance(each, HuggingFaceScorerConfig))
        ]
        return [problem for check in checks for problem in check.result()]


def _adapter_problems(recipe: "Recipe", model: Model) -> list[str]:
    """Names of `learner.lora` that no module of the policy's files has, on one line."""
    lora, folder = recipe.learner.lora, local_folder(model.name)
    if lora is None or isinstance(lora.target_modules, str) or folder is None:
        return []
    modules = [f".{name.rpartition('.')[0]}" for name in tensor_headers(folder)]
    missing = [target for target in lora.target_modules if not any(name.endswith(f".{target}") for name in modules)]
    if not modules or not missing:
        return []
    return [f"learner.lora.target_modules: must be modules of {model.key}, got {', '.join(map(repr, missing))}"]


def check_policy(model: str, where: str, *, max_model_len: int) -> list[str]:
    """Problems of a policy that can be known from its files, one line each; `where` names it for the reader."""
    folder = known_folder(model)
    if folder is None:
        return []
    if not (folder / "config.json").is_file():
        return [f"{where}: must be a Hugging Face folder (no config.json), got {model!r}"]
    try:
        config = read_json(folder / "config.json")
        if local_folder(model) is not None:  # of a hub id, what is not here yet is downloaded later
            refuse_code(folder)
            rows = vocabulary_size(config)
            compared = check_weights(folder, config)
            check_vocabulary(folder, rows)
            check_padding(folder, config, rows)
            check_token_ids(folder, read_token_ids(folder), rows)
            if not compared:
                pretrained.load_model("AutoModelForCausalLM", model, head="whole", device_map="meta")
    except ValueError as error:
        return [f"{where}: {error}"]
    positions = max_positions(config)
    if positions is not None and max_model_len > positions:
        return [
            f"rollout.max_model_len: must be at most {positions}, the positions of {where} {model!r}, "
            f"got {max_model_len}"
        ]
    return []


def _check_functions(recipe: "Recipe") -> list[str]:
    """Problems of the functions that only the evaluation calls, one line each."""
    named = {f"audit_statistics.{name}": path for name, path in recipe.evaluate.audit_statistics.items()}
    if recipe.evaluate.attainable is not None:
        named["attainable"] = recipe.evaluate.attainable
    problems = []
    for key, path in named.items():
        try:
            load_function(path)
        except ScorerError as error:
            problems.append(f"evaluate.{key}: {error}")
    return problems


def load_tokenizer(model: str, key: str = "policy.model") -> Any:
    """Raises BadInput, naming the recipe's `key`, when the folder or hub id holds none."""
    try:
        return pretrained.load_tokenizer(model)
    except ModelError as error:
        raise BadInput(f"{key}: {error}") from None


def make_renderer(recipe: "Recipe", tokenizer: Any) -> PromptRenderer:
    """The one renderer of G(x, w), shared by training, evaluation and `generate`."""
    return PromptRenderer(
        recipe.preferences.conditioning, recipe.objective_names, recipe.preferences.decimals, tokenizer=tokenizer
    )


def check_renderer(renderer: PromptRenderer, prompts: Sequence[Prompt | str], *, where: str) -> None:
    """Raises BadInput unless w is read in the prompts: by all its digits in the shortest, roughly in all others."""
    try:
        renderer.check(min(prompts, key=_length))
        renderer.check(max(prompts, key=_length), decimals=1)
        renderer.check_options()
        renderer.check_each(prompts)
    except PreferenceError as error:
        raise BadInput(f"{where}: {error}") from None


def _length(prompt: Prompt | str) -> int:
    return len(as_prompt(prompt).plain)


def _prompt_lengths(
    recipe: "Recipe", renderer: PromptRenderer, prompts: Sequence[Prompt], model: Model, *, where: str
) -> list[int]:
    """Tokens of the rendered prompts; raises BadInput naming the first that leaves no room for a response."""
    room = recipe.rollout.max_model_len - recipe.rollout.max_new_tokens
    preference = evaluation_grid(recipe.num_objectives)[0]
    measured = range(len(prompts))
    if len(prompts) > PROMPTS_CHECKED:
        measured = sorted(measured, key=lambda index: _length(prompts[index]))[-PROMPTS_CHECKED:]  # type: ignore[assignment]
    lengths = []
    rows = _rows(model.name)
    try:
        measured_ids = renderer.token_ids_of_each([prompts[index] for index in measured], preference)
    except PreferenceError as error:
        raise BadInput(f"{where}: {error}") from None
    for index, token_ids in zip(measured, measured_ids, strict=True):
        _require_rows(renderer, token_ids, rows, model, where=f"{where}, prompt {index + 1}")
        tokens = len(token_ids)
        if tokens > room:
            raise BadInput(
                f"{where}, prompt {index + 1}: must fit rollout.max_model_len - rollout.max_new_tokens = {room} "
                f"tokens, got {tokens}: {prompts[index].plain!r:.80}"
            )
        lengths.append(tokens)
    return lengths


def _rows(model: str) -> int | None:
    """Of the policy's embedding; None where it cannot be known here."""
    folder = known_folder(model)
    return None if folder is None else vocabulary_size(read_json(folder / "config.json"))


def _written_vectors(recipe: "Recipe") -> Iterator[list[float]]:
    """Vectors that together hold every weight that can be printed, in the place of every objective."""
    unit, count = 10**recipe.preferences.decimals, recipe.num_objectives
    for k in range(count):
        for level in range(unit + 1):
            vector = [0.0] * count
            vector[k] = level / unit
            vector[(k + 1) % count] += 1 - level / unit
            yield vector


def _require_rows(
    renderer: PromptRenderer, token_ids: Sequence[int], rows: int | None, model: Model, *, where: str
) -> None:
    """Raises BadInput: the policy's embedding has no row for a token of a prompt."""
    beyond = None if rows is None else first_without_row(token_ids, rows)
    if rows is not None and beyond is not None:
        token = renderer.tokenizer.convert_ids_to_tokens(beyond)
        raise BadInput(f"{where}: {model.key} {without_row(token, beyond, rows)}")
