"""Everything about a run that can be known before it starts: is the input usable, does it fit, what will it cost.

No Ray and no model is loaded; tokenizers and file headers are.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster import check_fits, demands, joins_existing, local_resources
from orchestrator.data import load_prompts
from orchestrator.errors import BadInput
from rewards.preferences import PromptRenderer, evaluation_grid
from rewards.scorers import check_scorer

if TYPE_CHECKING:
    from orchestrator.config import Recipe

ADAM_BYTES_PER_PARAMETER = 4 + 4 + 8
"""fp32 master weight, gradient, two moments."""
PROMPTS_CHECKED = 20_000
"""Prompts whose token length is measured; beyond that the longest texts are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What training reads. Example: Inputs(train=("how do i ...",), heldout=("can you ...",), renderer=...)"""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    renderer: PromptRenderer
    longest_prompt_tokens: int


def is_local(model: str) -> bool:
    """Whether a model string means a folder rather than a hub id."""
    return model.startswith((".", "/", "~")) or Path(model).expanduser().exists() or model.count("/") > 1


def check_inputs(recipe: "Recipe") -> Inputs:
    """Read and check everything a run needs. Raises BadInput listing one problem per line."""
    problems: list[str] = []
    if is_local(recipe.policy.model) and not (Path(recipe.policy.model).expanduser() / "config.json").is_file():
        problems.append(f"policy.model: must be a Hugging Face folder (no config.json), got {recipe.policy.model!r}")
    for index, objective in enumerate(recipe.objectives):
        problems += check_scorer(objective.scorer, f"objectives.{index}.scorer")
        if objective.audit is not None:
            problems += check_scorer(objective.audit, f"objectives.{index}.audit")
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
        _check_lengths(recipe, renderer, prompts[key], where=f"data.{key} {getattr(recipe.data, key)}") for key in prompts
    )
    return Inputs(
        train=prompts["train"], heldout=prompts["heldout"], renderer=renderer, longest_prompt_tokens=longest
    )


def load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(Path(model).expanduser()) if is_local(model) else model)
    except (OSError, ValueError) as error:
        raise BadInput(f"policy.model: no tokenizer could be loaded from {model!r}: {str(error).splitlines()[0]}") from None


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
                f"{where}, prompt {index + 1}: must fit rollout.max_model_len - rollout.max_new_tokens = {room} tokens, "
                f"got {tokens}: {prompts[index]!r:.80}"
            )
        longest = max(longest, tokens)
    return longest


def count_parameters(model: str) -> int | None:
    """Parameters of a local safetensors folder, from the file headers alone; None when they cannot be known."""
    total = 0
    for file in sorted(Path(model).expanduser().glob("*.safetensors")):
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in entry["shape"]:
                    size *= dimension
                total += size
    return total or None


def describe_plan(recipe: "Recipe", inputs: Inputs | None) -> str:
    """Placement, batch arithmetic and memory estimate, for a person."""
    loop, learner, rollout = recipe.loop, recipe.learner, recipe.rollout
    lines = [f"{recipe.name}: method {recipe.method}, seed {recipe.seed}, objectives {', '.join(recipe.objective_names)}"]
    address = joins_existing(recipe)
    lines.append(f"\nPlacement ({f'Ray cluster at {address}' if address else 'local Ray cluster'})")
    for demand in demands(recipe):
        lines.append(
            f"  {demand.role:<24} {demand.count} x ({demand.num_cpus:g} CPU, {demand.num_gpus:g} GPU)"
        )
    sequences = 4 if learner.beta_w and recipe.method == "mi-epo" else 2
    micro_batches = loop.prompts_per_step // (learner.ranks * learner.micro_batch_pairs)
    grid = len(evaluation_grid(recipe.num_objectives))
    lines += [
        "\nBatch",
        f"  one optimizer step       {loop.prompts_per_step} prompts x 2 responses = {2 * loop.prompts_per_step} responses",
        f"  learner                  {learner.ranks} rank(s) x {micro_batches} micro-batch(es) x {learner.micro_batch_pairs} pairs, "
        f"{sequences} policy and {sequences} reference sequences a pair",
        f"  whole run                {loop.steps} steps, {2 * loop.steps * loop.prompts_per_step} responses, "
        f"at most {2 * loop.steps * loop.prompts_per_step * rollout.max_new_tokens} generated tokens, staleness <= {loop.max_staleness}",
        f"  one evaluation           {grid} vectors x {recipe.evaluate.prompts} prompts x {recipe.evaluate.samples} responses = "
        f"{grid * recipe.evaluate.prompts * recipe.evaluate.samples} responses",
    ]
    if inputs is None:
        lines.append(f"\nAssets: not built yet; `mi-epo train` builds them in {recipe.assets.directory if recipe.assets else '?'}")
        return "\n".join(lines)
    lines += [
        "\nPrompts",
        f"  train {len(inputs.train)}, held-out {len(inputs.heldout)}; longest with w: {inputs.longest_prompt_tokens} tokens of "
        f"{rollout.max_model_len - rollout.max_new_tokens}",
        f"  example                  {inputs.renderer.text(inputs.train[0], evaluation_grid(recipe.num_objectives)[1])!r}",
    ]
    lines += ["\nMemory (weights and optimizer state; activations and caches come on top)", *_memory(recipe)]
    return "\n".join(lines)


def _memory(recipe: "Recipe") -> list[str]:
    parameters = count_parameters(recipe.policy.model)
    if parameters is None:
        return ["  unknown until the policy is downloaded"]
    learner = recipe.learner
    width = 4 if learner.num_gpus == 0 else 2
    shards = {0: (1, 1), 1: (1, learner.ranks), 2: (1, learner.ranks), 3: (learner.ranks, learner.ranks)}
    weight_shards, state_shards = shards[learner.zero_stage]
    trainable = "full" if learner.lora is None else f"LoRA rank {learner.lora.rank}"
    state = ADAM_BYTES_PER_PARAMETER * parameters / state_shards if learner.lora is None else 0
    reference = parameters * width / weight_shards if learner.lora is None else 0
    rank_bytes = parameters * width / weight_shards + state + reference
    return [
        f"  policy                   {parameters:,} parameters",
        f"  learner, each rank       {rank_bytes / 2**20:,.1f} MiB ({trainable}, ZeRO-{learner.zero_stage}, reference included)",
        f"  rollout, each engine     {parameters * width / 2**20:,.1f} MiB of weights plus its KV cache",
        f"  one weight broadcast     {parameters * width / 2**20:,.1f} MiB in buckets of {learner.bucket_bytes / 2**20:g} MiB",
    ]


def plan(recipe: "Recipe") -> str:
    """Check everything, then describe it. Raises BadInput."""
    if joins_existing(recipe) is None:
        cpus, gpus = local_resources(recipe)
        check_fits(recipe, cpus=cpus, gpus=gpus, where="this machine")
    assets = recipe.assets
    if assets is not None and not Path(assets.directory).is_dir():
        if assets.build is None:
            raise BadInput(f"assets.directory: must be there (the recipe does not build it), got {assets.directory!r}")
        return describe_plan(recipe, None)
    return describe_plan(recipe, check_inputs(recipe))
