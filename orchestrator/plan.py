"""Everything about a run that can be known before it starts: is the input usable, does it fit, what will it cost.

No weight is loaded; tokenizers and file headers are. Ray only when a running cluster is to be asked.
"""

import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.methods import make_method
from orchestrator.cards import CARDS, card_named, card_of
from orchestrator.cluster import connection
from orchestrator.cluster.placement import Node, demands, placement_table
from orchestrator.cluster.threads import take_turns, with_threads
from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from orchestrator.estimate.memory import problems
from orchestrator.estimate.shapes import model_shape
from orchestrator.estimate.split import splits
from orchestrator.estimate.table import assumed_prompt, estimate_rows, row, split_rows
from rewards import pretrained
from rewards.environment import local_folder
from rewards.judges import check_scorer
from rewards.model_config import check_weights, max_positions, vocabulary_size
from rewards.model_files import ModelError, known_folder, read_json, refuse_code, tensor_headers
from rewards.preferences import PreferenceError, PromptRenderer, evaluation_grid
from rewards.prompts import Prompt, as_prompt
from rewards.sampling import read_token_ids
from rewards.scorers import PROBE_PROMPT, ScorerError, load_function
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
    problems = check_policy(recipe.policy.model, "policy.model", max_model_len=recipe.rollout.max_model_len)
    if not problems:
        problems += _adapter_problems(recipe)
    prompts: dict[str, tuple[Prompt, ...]] = {}
    data_problems = []
    for key, limit in (("train", recipe.data.max_prompts), ("heldout", None)):
        try:
            prompts[key] = tuple(
                load_prompts(
                    getattr(recipe.data, key), field=recipe.data.prompt_field, limit=limit, columns=recipe.columns
                )
            )
        except BadInput as error:
            data_problems.append(f"data.{key}: {error}")
    problems += _judge_problems(recipe, next(iter(prompts.get("train", ())), PROBE_PROMPT))
    problems += _check_functions(recipe) + data_problems
    if not data_problems and _are_the_same(recipe.data.train, recipe.data.heldout):
        problems.append(f"data.heldout: must be another file than data.train, got {recipe.data.heldout!r} for both")
    if problems:
        raise BadInput("\n".join(problems))
    tokenizer, rows = load_tokenizer(recipe.policy.model), _rows(recipe.policy.model)
    try:
        check_inserted(tokenizer, rows, recipe.policy.model)
    except ModelError as error:
        raise BadInput(f"policy.model: {error}") from None
    renderer = make_renderer(recipe, tokenizer)
    with contextlib.suppress(PreferenceError):  # `check_renderer` says it better
        for vector in _written_vectors(recipe):
            token_ids = renderer.token_ids(prompts["heldout"][0], vector)
            _require_rows(renderer, token_ids, rows, where=f"preferences.conditioning, weights {vector}")
    check_renderer(renderer, [*prompts["train"], *prompts["heldout"]], where="preferences.conditioning")
    longest, mean = 0, 0.0
    for key in ("heldout", "train"):
        tokens = _prompt_lengths(recipe, renderer, prompts[key], where=f"data.{key} {getattr(recipe.data, key)}")
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


def _judge_problems(recipe: "Recipe", prompt: Prompt) -> list[str]:
    """Of all judges, one line each; servers and functions are asked about `prompt`."""
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
            for role in ("scorer", "audit")
            for index, objective in enumerate(recipe.objectives)
            if (judge := getattr(objective, role)) is not None
        ]
        return [problem for check in checks for problem in check.result()]


def _adapter_problems(recipe: "Recipe") -> list[str]:
    """Names of `learner.lora` that no module of the policy's files has, on one line."""
    lora, folder = recipe.learner.lora, local_folder(recipe.policy.model)
    if lora is None or isinstance(lora.target_modules, str) or folder is None:
        return []
    modules = [f".{name.rpartition('.')[0]}" for name in tensor_headers(folder)]
    missing = [target for target in lora.target_modules if not any(name.endswith(f".{target}") for name in modules)]
    if not modules or not missing:
        return []
    return [f"learner.lora.target_modules: must be modules of policy.model, got {', '.join(map(repr, missing))}"]


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


def load_tokenizer(model: str) -> Any:
    """Raises BadInput when the folder or hub id holds none."""
    try:
        return pretrained.load_tokenizer(model)
    except ModelError as error:
        raise BadInput(f"policy.model: {error}") from None


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


def _prompt_lengths(recipe: "Recipe", renderer: PromptRenderer, prompts: Sequence[Prompt], *, where: str) -> list[int]:
    """Tokens of the rendered prompts; raises BadInput naming the first that leaves no room for a response."""
    room = recipe.rollout.max_model_len - recipe.rollout.max_new_tokens
    preference = evaluation_grid(recipe.num_objectives)[0]
    measured = range(len(prompts))
    if len(prompts) > PROMPTS_CHECKED:
        measured = sorted(measured, key=lambda index: _length(prompts[index]))[-PROMPTS_CHECKED:]  # type: ignore[assignment]
    lengths = []
    rows = _rows(recipe.policy.model)
    try:
        measured_ids = renderer.token_ids_of_each([prompts[index] for index in measured], preference)
    except PreferenceError as error:
        raise BadInput(f"{where}: {error}") from None
    for index, token_ids in zip(measured, measured_ids, strict=True):
        _require_rows(renderer, token_ids, rows, where=f"{where}, prompt {index + 1}")
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


def _require_rows(renderer: PromptRenderer, token_ids: Sequence[int], rows: int | None, *, where: str) -> None:
    """Raises BadInput: the policy's embedding has no row for a token of a prompt."""
    beyond = None if rows is None else first_without_row(token_ids, rows)
    if rows is not None and beyond is not None:
        token = renderer.tokenizer.convert_ids_to_tokens(beyond)
        raise BadInput(f"{where}: policy.model {without_row(token, beyond, rows)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Example: Plan(text="Placement ...", refusals=("this machine has no room ...",))"""

    text: str
    """Placement, batch arithmetic, memory and time, for a person."""
    refusals: tuple[str, ...]
    """Why the recipe cannot run there, if it cannot."""


def describe_plan(recipe: "Recipe", inputs: Inputs | None, nodes: Sequence[Node]) -> str:
    """What is known of a run, for a person; no `inputs`: they are not there, no `nodes`: not known."""
    address = connection.joins_existing(recipe)
    if inputs is not None:  # an evaluation takes no prompt twice
        prompts = min(recipe.evaluate.prompts, len(inputs.heldout))
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"prompts": prompts})})
    lines = [
        f"{recipe.name}: seed {recipe.seed}, objectives {', '.join(recipe.objective_names)}",
        f"method {_method_text(recipe)}",
        f"\nPlacement ({f'Ray cluster at {address}' if address else 'local Ray cluster'})",
        placement_table(demands(recipe), nodes),
        *_thread_rows(recipe),
        "\nBatch",
        *_batch_rows(recipe),
    ]
    room = recipe.rollout.max_model_len - recipe.rollout.max_new_tokens
    if inputs is not None:
        example = inputs.renderer.text(inputs.train[0], evaluation_grid(recipe.num_objectives)[1].tolist())
        lines += [
            "\nPrompts",
            row("train, held-out", f"{len(inputs.train)}, {len(inputs.heldout)}"),
            row("longest with w", f"{inputs.longest_prompt_tokens} tokens of {room}"),
            row("example", f"{example!r:.200}"),
            *(f"  {remark}" for remark in inputs.remarks),
        ]
    elif recipe.assets is not None:
        lines.append(f"\nAssets: built by `mi-epo train` in {recipe.assets.directory} (not built yet)")
    card = card_of([card for node in nodes for card in node.cards], recipe.cluster.card)
    return "\n".join([*lines, *estimate_rows(recipe, card, inputs.mean_prompt_tokens if inputs else None)])


def _thread_rows(recipe: "Recipe") -> list[str]:
    if not take_turns(recipe):
        return []
    settled = with_threads(recipe)
    return [f"  {settled.rollout.threads} threads an engine, {settled.learner.threads} a learner rank: they take turns"]


def _method_text(recipe: "Recipe") -> str:
    settings = recipe.method.model_dump(exclude={"type"})
    return f"{recipe.method.type} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def _batch_rows(recipe: "Recipe") -> list[str]:
    loop, learner = recipe.loop, recipe.learner
    responses = loop.responses_per_prompt * loop.prompts_per_step
    method = make_method(recipe.method)
    vectors = f"w+ and {recipe.preferences.negatives} w-" if method.negatives else "w+ alone"
    reference = "policy and reference" if method.uses_reference else "the policy"
    grid, prompts = len(evaluation_grid(recipe.num_objectives)), recipe.evaluate.prompts
    samples = recipe.evaluate.samples
    tokens = loop.steps * responses * recipe.rollout.max_new_tokens
    asked = f"{loop.prompts_per_step} prompts x {loop.responses_per_prompt} = {responses} responses"
    measured = f"{grid} vectors x {prompts} prompts x {samples} = {grid * prompts * samples} responses"
    return [
        row("one optimizer step", asked),
        row("learner", f"{learner.ranks} rank(s), micro-batches of at most {learner.micro_batch_tokens} tokens"),
        row("one response", f"passed under {vectors}, by {reference}"),
        row("whole run", f"{loop.steps} steps, {loop.steps * responses} responses, <= {tokens} generated tokens"),
        row("staleness", f"<= {loop.max_staleness}"),
        row("one evaluation", measured),
    ]


def plan(recipe: "Recipe", *, live: bool = False, device: str | None = None, gpus: int | None = None) -> Plan:
    """Check everything and describe what can be described.

    Args:
        live: against the running cluster.
        device: of the machines that it is planned for, which are not asked; a beginning of a card's name.
        gpus: how many such, to be divided.

    Raises:
        BadInput: there is no cluster to ask, no such device, or so many have no room.
    """
    local = connection.joins_existing(recipe) is None
    if device is not None:
        card = card_named(device)
        recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"card": card.name})})
    if live and local:
        raise BadInput("plan --live: no cluster is named; set cluster.address or RAY_ADDRESS")
    refusals: list[str] = []
    nodes: list[Node] = []
    elsewhere = device is not None or gpus is not None
    if elsewhere:
        refusals = [] if gpus is not None else problems(recipe, CARDS[recipe.cluster.card])
    elif local:
        nodes = [connection.this_machine(recipe)]
        refusals = connection.refusals(recipe, nodes[0])
    elif live:
        with connection.connect(recipe):
            nodes = connection.live_nodes(ask_cards=True)
        refusals = problems(recipe, card_of([card for node in nodes for card in node.cards], recipe.cluster.card))
    inputs, assets = None, recipe.assets
    if assets is None or Path(assets.directory).is_dir():
        try:
            inputs = check_inputs(recipe)
        except BadInput as error:
            refusals.append(str(error))
    elif assets.build is None:
        refusals.append(f"assets.directory: must be there (the recipe does not build it), got {assets.directory!r}")
    text = describe_plan(recipe, inputs, nodes)
    if gpus is not None:
        text += "\n" + "\n".join(_splits(recipe, inputs, gpus))
    return Plan(text=text, refusals=tuple(refusals))


def _splits(recipe: "Recipe", inputs: Inputs | None, gpus: int) -> list[str]:
    shape, card = model_shape(recipe.policy.model), CARDS[recipe.cluster.card]
    if shape is None:
        raise BadInput(f"--gpus: the size of policy.model {recipe.policy.model!r} is unknown until it is here")
    tokens = inputs.mean_prompt_tokens if inputs else assumed_prompt(recipe)
    return split_rows(splits(recipe, shape, card, gpus, tokens), card, gpus)
