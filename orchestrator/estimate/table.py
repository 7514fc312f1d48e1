"""The estimate as `mi-epo plan` prints it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learner.methods import make_method
from orchestrator.cards import GIB, Card
from orchestrator.estimate.memory import GpuLoad, engine_bytes, engine_memory, gpu_loads, host_memory, rank_memory
from orchestrator.estimate.shapes import Shape, policy_shape
from orchestrator.estimate.speed import (
    BANDWIDTH_SHARE,
    PRODUCTS_SHARE,
    evaluation_s,
    learner_flops,
    step_time,
)
from orchestrator.estimate.split import Split
from orchestrator.files import as_text

if TYPE_CHECKING:
    from orchestrator.config import Recipe

SPLITS_SHOWN = 5


def row(name: str, text: str) -> str:
    return f"  {name:<24} {text}"


def estimate_rows(recipe: "Recipe", card: Card, prompt_tokens: float | None) -> list[str]:
    """Memory and time; `prompt_tokens`: of an average prompt, w included, where the prompts are there."""
    shape = policy_shape(recipe)
    heading = "\nMemory (estimated; + is what passes through at the longest batch)"
    if shape is None:
        return [heading, row("policy", "unknown until it is here")]
    return [heading, *_memory_rows(recipe, shape, card), *_time_rows(recipe, shape, card, prompt_tokens)]


def _memory_rows(recipe: "Recipe", shape: Shape, card: Card) -> list[str]:
    learner, rank, engine = recipe.learner, rank_memory(recipe, shape), engine_memory(recipe, shape)
    state = f"weights {_size(rank.weights)}, reference {_size(rank.reference)}, optimizer {_size(rank.optimizer)}"
    work = f"gradients {_size(rank.gradients)} + activations {_size(rank.activations)}, logits {_size(rank.logits)}"
    of_sequences = f"{recipe.rollout.max_num_seqs} sequences of {recipe.rollout.max_model_len} tokens"
    rows = [
        row("policy", f"{shape.parameters:,} parameters"),
        row("learner, each rank", f"{state} (ZeRO-{learner.zero_stage} over {learner.ranks})"),
        row("  while it computes", work),
        row("rollout, each engine", f"weights {_size(engine.weights)}; {of_sequences}: {_size(engine.sequences)}"),
    ]
    loads = gpu_loads(recipe, shape, card)
    rows += [line for load in loads for line in _load_rows(load, card)]
    if recipe.rollout.num_gpus:
        cache = engine_bytes(recipe, engine, card) - engine.least + engine.sequence
        rows.append(row("cache of an engine", f"room for about {max(0, int(cache / engine.sequence))} such sequences"))
    host = {name: size for name, size in host_memory(recipe, shape).items() if size}
    rows.append(row("host memory", ", ".join(f"{name} {_size(size)}" for name, size in host.items())))
    return [*rows, row("one weight broadcast", f"{_size(rank.sent)} in buckets of {_size(learner.bucket_bytes)}")]


def _load_rows(load: GpuLoad, card: Card) -> list[str]:
    peak = max(load.sampling.held + load.sampling.work, load.learning.held + load.learning.work)
    held = max(load.sampling.held, load.learning.held)
    fits = "does not fit" if held > card.memory else "may run out" if peak > card.memory else "fits"
    phases = (
        {"holds": load.learning}
        if load.sampling == load.learning
        else {"sampling": load.sampling, "learning": load.learning}
    )
    return [
        row(f"{load.count} GPU{'s' * (load.count > 1)} of {_size(card.memory)}", f"{load.names}: {fits}"),
        *(row(f"  {name}", f"{_size(need.held)} + {_size(need.work)}") for name, need in phases.items()),
    ]


def assumed_prompt(recipe: "Recipe") -> float:
    """Tokens of an average prompt where the prompts are not there: half of what fits."""
    return (recipe.rollout.max_model_len - recipe.rollout.max_new_tokens) / 2


def _time_rows(recipe: "Recipe", shape: Shape, card: Card, prompt_tokens: float | None) -> list[str]:
    prompt = assumed_prompt(recipe) if prompt_tokens is None else prompt_tokens
    time = step_time(recipe, shape, card, prompt)
    if time is None:
        return []
    assert card.flops and card.bandwidth
    loop, flops = recipe.loop, learner_flops(recipe, shape, prompt)
    evaluations = 2 + (max(0, loop.steps - 1) // recipe.evaluate.every if recipe.evaluate.every else 0)
    evaluation = evaluation_s(recipe, shape, card, prompt)
    products, bandwidth = f"{card.flops / 1e12:g} TFLOP/s", f"{card.bandwidth / 1e12:g} TB/s"
    assumed = f"{PRODUCTS_SHARE:.0%} of {products}, {BANDWIDTH_SHARE:.0%} of {bandwidth}"
    prompts = f"prompts of {prompt:.0f} tokens" + (" (assumed: half of what fits)" if prompt_tokens is None else "")
    per_token = flops / shape.parameters / (_sequences(recipe) * (prompt + recipe.rollout.max_new_tokens))
    return [
        f"\nTime of a step on {card.name} (estimated at {assumed})",
        row("assumed", f"{prompts}, every response {recipe.rollout.max_new_tokens}"),
        row("generate", f"{time.generate:.1f} s"),
        row("score", f"{time.score:.1f} s, while others are sampled"),
        row("learn", f"{time.learn:.1f} s: {flops / 1e15:.2f} PFLOP, {per_token:.0f} for each parameter and token"),
        row("sync", f"{time.sync:.2f} s"),
        row("step", f"{time.total:.1f} s; {time.verdict}"),
        row("one evaluation", f"{evaluation:.0f} s"),
        row("whole run", f"{(loop.steps * time.total + evaluations * evaluation) / 60:.0f} minutes and its starts"),
    ]


def split_rows(found: Sequence[Split], card: Card, gpus: int) -> list[str]:
    """The fastest of the splits, and what to write for the first of them."""
    cells: list[tuple[str, ...]] = [
        ("engines", "ranks", "judges on", "colocated", "generate", "score", "learn", "sync", "step", "idle")
    ]
    for split in found[:SPLITS_SHOWN]:
        rollout, time = split.recipe.rollout, split.time
        seconds = (time.generate, time.score, time.learn, time.sync, time.total)
        engines = f"{rollout.engines}" + f" x {rollout.tensor_parallel_size}" * (rollout.tensor_parallel_size > 1)
        placed = (engines, str(split.recipe.learner.ranks), str(split.judges), "yes" if rollout.colocated else "no")
        cells.append((*placed, *(f"{each:.1f} s" for each in seconds), f"{time.idle:.0%}"))
    best = " ".join(f"{key}={str(value).lower()}" for key, value in found[0].overrides.items())
    return [
        f"\nSplit of {gpus} x {card.name}, the fastest first (idle: of engines and learner together)",
        *as_text(cells).splitlines(),
        row("the first is", best),
    ]


def _sequences(recipe: "Recipe") -> int:
    """The learner's passes of a step."""
    vectors = 1 + recipe.preferences.negatives * make_method(recipe.method).negatives
    return recipe.loop.prompts_per_step * recipe.loop.responses_per_prompt * vectors


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
