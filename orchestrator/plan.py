"""Everything about a run that can be known before it starts: is the input usable, does it fit, what will it cost.

No model is loaded; tokenizers and file headers are. Ray only when a running cluster is to be asked.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.methods import Combines, make_method
from orchestrator.cluster import connection
from orchestrator.cluster.placement import Node, demands, placement_table
from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from rewards.environment import local_folder, model_source, one_line
from rewards.judges import check_scorer
from rewards.preferences import PromptRenderer, evaluation_grid
from rewards.scorers import ScorerError, load_function

if TYPE_CHECKING:
    from orchestrator.config import Recipe

GRADIENT_BYTES = 4
OPTIMIZER_BYTES = 4 + 8
"""Of each trained parameter: fp32 master weight, two moments."""
HOST_BYTES = OPTIMIZER_BYTES + 4 + 4
"""The same offloaded: with the gradient that is stepped by, and what is copied from or to the GPU."""
PROMPTS_CHECKED = 20_000
"""Prompts whose token length is measured; beyond that the longest texts are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What training reads. Example: Inputs(train=("how do i ...",), heldout=("can you ...",), renderer=...)"""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    renderer: PromptRenderer
    longest_prompt_tokens: int


def check_inputs(recipe: "Recipe") -> Inputs:
    """Read and check everything a run needs. Raises BadInput listing one problem per line."""
    problems: list[str] = []
    folder = local_folder(recipe.policy.model)
    if folder is not None and not (folder / "config.json").is_file():
        problems.append(f"policy.model: must be a Hugging Face folder (no config.json), got {recipe.policy.model!r}")
    for index, objective in enumerate(recipe.objectives):
        problems += check_scorer(objective.scorer, f"objectives.{index}.scorer")
        if objective.audit is not None:
            problems += check_scorer(objective.audit, f"objectives.{index}.audit")
    problems += _check_functions(recipe)
    prompts: dict[str, tuple[str, ...]] = {}
    for key, limit in (("train", recipe.data.max_prompts), ("heldout", None)):
        try:
            prompts[key] = tuple(load_prompts(getattr(recipe.data, key), field=recipe.data.prompt_field, limit=limit))
        except BadInput as error:
            problems.append(f"data.{key}: {error}")
    if problems:
        raise BadInput("\n".join(problems))
    renderer = make_renderer(recipe, load_tokenizer(recipe.policy.model))
    longest = max(
        _check_lengths(recipe, renderer, prompts[key], where=f"data.{key} {getattr(recipe.data, key)}")
        for key in prompts
    )
    return Inputs(train=prompts["train"], heldout=prompts["heldout"], renderer=renderer, longest_prompt_tokens=longest)


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
    folder = local_folder(model)
    try:
        if folder is not None and _is_plain_fast_tokenizer(folder):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model_source(model))
    except (OSError, ValueError) as error:
        raise BadInput(f"policy.model: no tokenizer could be loaded from {model!r}: {one_line(error)}") from None


def _is_plain_fast_tokenizer(folder: Path) -> bool:
    """Whether the generic fast class is the folder's own: AutoTokenizer gives the same but imports torch."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    generic = ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (folder / "tokenizer.json").is_file() and config.get("tokenizer_class") in generic


def make_renderer(recipe: "Recipe", tokenizer: Any) -> PromptRenderer:
    """The one renderer of G(x, w), shared by training, evaluation and `generate`."""
    return PromptRenderer(
        recipe.preferences.conditioning, recipe.objective_names, recipe.preferences.decimals, tokenizer=tokenizer
    )


def _check_lengths(recipe: "Recipe", renderer: PromptRenderer, prompts: Sequence[str], *, where: str) -> int:
    """Longest rendered prompt in tokens; raises BadInput naming the first that leaves no room for a response."""
    room = recipe.rollout.max_model_len - recipe.rollout.max_new_tokens
    preference = evaluation_grid(recipe.num_objectives)[0]
    measured = range(len(prompts))
    if len(prompts) > PROMPTS_CHECKED:
        measured = sorted(measured, key=lambda index: len(prompts[index]))[-PROMPTS_CHECKED:]  # type: ignore[assignment]
    longest = 0
    for index in measured:
        tokens = len(renderer.token_ids(prompts[index], preference))
        if tokens > room:
            raise BadInput(
                f"{where}, prompt {index + 1}: must fit rollout.max_model_len - rollout.max_new_tokens = {room} "
                f"tokens, got {tokens}: {prompts[index]!r:.80}"
            )
        longest = max(longest, tokens)
    return longest


def count_parameters(model: str) -> int | None:
    """Parameters of a local safetensors folder, from the file headers alone; None when they cannot be known."""
    from safetensors import safe_open

    folder, total = local_folder(model), 0
    for file in folder.glob("*.safetensors") if folder is not None else ():
        with safe_open(file, "np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or None


def describe_plan(recipe: "Recipe", inputs: Inputs | None, nodes: Sequence[Node]) -> str:
    """Placement, batch arithmetic and memory estimate, for a person; no `nodes`: not known."""
    address = connection.joins_existing(recipe)
    lines = [
        f"{recipe.name}: seed {recipe.seed}, objectives {', '.join(recipe.objective_names)}",
        f"method {_method_text(recipe)}",
        f"\nPlacement ({f'Ray cluster at {address}' if address else 'local Ray cluster'})",
        placement_table(demands(recipe), nodes),
        "\nBatch",
        *_batch_rows(recipe),
    ]
    if inputs is None:
        assert recipe.assets is not None
        return "\n".join([*lines, f"\nAssets: built by `mi-epo train` in {recipe.assets.directory} (not built yet)"])
    room = recipe.rollout.max_model_len - recipe.rollout.max_new_tokens
    example = inputs.renderer.text(inputs.train[0], evaluation_grid(recipe.num_objectives)[1].tolist())
    return "\n".join(
        [
            *lines,
            "\nPrompts",
            _row("train, held-out", f"{len(inputs.train)}, {len(inputs.heldout)}"),
            _row("longest with w", f"{inputs.longest_prompt_tokens} tokens of {room}"),
            _row("example", f"{example!r:.200}"),
            "\nMemory (weights and optimizer state; activations and caches come on top)",
            *_memory_rows(recipe),
        ]
    )


def _method_text(recipe: "Recipe") -> str:
    settings = recipe.method.model_dump(exclude={"type"})
    return f"{recipe.method.type} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def _row(name: str, text: str) -> str:
    return f"  {name:<24} {text}"


def _batch_rows(recipe: "Recipe") -> list[str]:
    loop, learner = recipe.loop, recipe.learner
    responses = loop.responses_per_prompt * loop.prompts_per_step
    method = make_method(recipe.method)
    micro_batches = recipe.examples_per_step // (learner.ranks * learner.micro_batch_prompts)
    vectors = f"w+ and {recipe.preferences.negatives} w-" if method.negatives else "w+ alone"
    reference = "policy and reference" if method.uses_reference else "the policy"
    grid, prompts = len(evaluation_grid(recipe.num_objectives)), recipe.evaluate.prompts
    samples, size = recipe.evaluate.samples, learner.micro_batch_prompts
    tokens = loop.steps * responses * recipe.rollout.max_new_tokens
    asked = f"{loop.prompts_per_step} prompts x {loop.responses_per_prompt} = {responses} responses"
    measured = f"{grid} vectors x {prompts} prompts x {samples} = {grid * prompts * samples} responses"
    return [
        _row("one optimizer step", asked),
        _row("learner", f"{learner.ranks} rank(s) x {micro_batches} micro-batch(es) x {size} examples"),
        _row("one response", f"passed under {vectors}, by {reference}"),
        _row("whole run", f"{loop.steps} steps, {loop.steps * responses} responses, <= {tokens} generated tokens"),
        _row("staleness", f"<= {loop.max_staleness}"),
        _row("one evaluation", measured),
    ]


def _memory_rows(recipe: "Recipe") -> list[str]:
    parameters = count_parameters(recipe.policy.model)
    if parameters is None:
        return [_row("policy", "unknown until it is downloaded")]
    learner = recipe.learner
    width = 4 if learner.num_gpus == 0 else 2
    stage = learner.zero_stage if width == 4 else max(2, learner.zero_stage)  # as bfloat16 runs
    weight_shards = learner.ranks if stage == 3 else 1
    full = learner.lora is None
    copies = 2 if full else 1  # the frozen reference is a second copy, or the same weights without their adapter
    trained = full * parameters / (learner.ranks if stage else 1)
    kept = OPTIMIZER_BYTES + GRADIENT_BYTES
    if learner.offload_optimizer:
        kept = 0 if stage == 3 else GRADIENT_BYTES
    rank = copies * parameters * width / weight_shards + trained * kept
    if full and isinstance(make_method(recipe.method), Combines):
        rank += 4 * recipe.num_objectives * parameters  # a float32 gradient of each objective
    mebibytes = parameters * width / 2**20
    offloaded = trained * HOST_BYTES if learner.offload_optimizer else 0
    beside = f", and {offloaded / 2**20:,.1f} MiB of host memory" if offloaded else ""
    return [
        _row("policy", f"{parameters:,} parameters"),
        _row("learner, each rank", f"{rank / 2**20:,.1f} MiB (ZeRO-{stage}, reference included){beside}"),
        _row("rollout, each engine", f"{mebibytes:,.1f} MiB of weights plus its KV cache"),
        _row("one weight broadcast", f"{mebibytes:,.1f} MiB in buckets of {learner.bucket_bytes / 2**20:g} MiB"),
    ]


def plan(recipe: "Recipe", *, live: bool = False) -> str:
    """Check everything, then describe it; `live`: against the running cluster. Raises BadInput."""
    local = connection.joins_existing(recipe) is None
    if live and local:
        raise BadInput("plan --live: no cluster is named; set cluster.address or RAY_ADDRESS")
    nodes = connection.check(recipe) if live or local else []
    assets = recipe.assets
    if assets is not None and not Path(assets.directory).is_dir():
        if assets.build is None:
            raise BadInput(f"assets.directory: must be there (the recipe does not build it), got {assets.directory!r}")
        return describe_plan(recipe, None, nodes)
    return describe_plan(recipe, check_inputs(recipe), nodes)
