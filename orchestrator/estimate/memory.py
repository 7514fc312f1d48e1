"""Bytes on each GPU and in host memory: who holds how much while batches are sampled, and while the learner computes.

`held` is arithmetic on the recipe: weights, states, what a setting reserves. `work` is an estimate of what passes
through at the longest batch that the recipe allows. Only what is held refuses a recipe.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.methods import Combines, make_method
from orchestrator.cards import GIB, Card
from orchestrator.estimate.shapes import Shape, adapter_parameters, model_shape, policy_shape
from rewards.config import ObjectiveConfig, panel_name
from rewards.judge_sections import HuggingFaceScorerConfig, ScorerConfig, single

if TYPE_CHECKING:
    from orchestrator.config import Recipe

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
PROCESS_BYTES = int(0.6 * GIB)
"""CUDA context, kernels and workspaces of one process on a GPU (guessed; nothing asked for it)."""
ENGINE_WORK_BYTES = int(1.5 * GIB)
"""An engine's activations, sampler and CUDA graphs (guessed). The same stays on the GPU while the engine sleeps."""
OFFLOADED_BYTES = 4 + 8 + 4 + 4
"""Of each trained parameter in host memory: float32 master copy, two moments, the gradient that is stepped by, and what
is copied from or to the GPU."""
REDUCE_BUCKET_BYTES = 2 * 500_000_000
"""DeepSpeed's `reduce_bucket_size` of 5e8 elements, in bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes of one learner rank."""

    weights: float
    reference: float
    """A second copy of the weights; 0 with adapters, where it is the policy without them."""
    optimizer: float
    """float32 master copy and the two moments of what is trained; 0 where they are offloaded."""
    offloaded: float
    """In host memory instead."""
    gradients: float
    """Summed up in float32 over an update's micro-batches."""
    activations: float
    logits: float
    sent: float
    """In one weight broadcast, from rank 0."""

    @property
    def kept(self) -> float:
        """Between updates."""
        return self.weights + self.reference + self.optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes of one engine on each of its GPUs."""

    weights: float
    sequence: float
    """Keys and values of one sequence of `rollout.max_model_len` tokens."""
    sequences: float
    """Of `rollout.max_num_seqs` of them."""

    @property
    def least(self) -> float:
        """With which it can serve one sequence."""
        return self.weights + self.sequence + ENGINE_WORK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Example: Need(held=18 * GIB, work=6 * GIB)"""

    held: float = 0.0
    work: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An actor, or a colocated pair of two, on a GPU."""

    name: str
    share: float
    """Of the GPU, as Ray counts."""
    sampling: Need
    learning: Need


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoad:
    """GPUs with the same tenants."""

    count: int
    tenants: tuple[Tenant, ...]

    @property
    def names(self) -> str:
        return ", ".join(tenant.name for tenant in self.tenants)

    @property
    def sampling(self) -> Need:
        return _sum([tenant.sampling for tenant in self.tenants])

    @property
    def learning(self) -> Need:
        return _sum([tenant.learning for tenant in self.tenants])


def rank_memory(recipe: "Recipe", shape: Shape) -> RankMemory:
    learner, method = recipe.learner, make_method(recipe.method)
    width = WIDTH["bfloat16" if learner.num_gpus else "float32"] if learner.dtype == "auto" else WIDTH[learner.dtype]
    stage = max(learner.zero_stage, 2) if width == 2 else learner.zero_stage  # as `learner.backend` chooses
    weight_shards, gradient_shards, state_shards = (learner.ranks if stage >= least else 1 for least in (3, 2, 1))
    lora = learner.lora
    adapters = adapter_parameters(shape, lora.rank, lora.target_modules) if lora else 0
    trained = adapters or shape.parameters
    master = 4 if stage else 0  # plain float32 training updates the weights themselves
    offloads = learner.offload_optimizer
    gradients = 0 if offloads and stage == 3 else 4 * trained / gradient_shards
    if stage and learner.num_gpus:
        gradients += REDUCE_BUCKET_BYTES
    if isinstance(method, Combines):
        gradients += 4 * recipe.num_objectives * trained  # a float32 gradient of each objective
    tokens = learner.micro_batch_tokens
    layer = layer_activations(shape, width, lora=lora is not None) * tokens
    only_adapters = lora is not None and learner.broadcast == "auto"
    inputs = width * shape.hidden * tokens
    rows = min(learner.logprob_chunk_tokens, tokens)
    return RankMemory(
        weights=(shape.parameters + adapters) * width / weight_shards,
        reference=0 if lora else shape.parameters * width / weight_shards,
        optimizer=0 if offloads else (master + 8) * trained / state_shards,
        offloaded=OFFLOADED_BYTES * trained / state_shards if offloads else 0,
        gradients=gradients,
        activations=shape.layers * inputs + layer if learner.gradient_checkpointing else shape.layers * layer,
        logits=rows * shape.vocabulary * (12 + 2 * width),  # logits and gradient; in float32 with their exponentials
        sent=width * (adapters if only_adapters else shape.parameters),
    )


def layer_activations(shape: Shape, width: int, *, lora: bool) -> int:
    """Bytes a token that one gated layer leaves for its backward pass, with attention that keeps no [T, T] block.

    Two norms (a float32 copy and the result), the inputs of the projections, queries, keys, values and the attention's
    result twice, four blocks of the feed-forward. Adapter dropout keeps an input and a mask for each of the modules.
    """
    hidden, wide = shape.hidden, shape.intermediate
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    plain = 2 * (4 + width) * hidden + 2 * width * hidden + width * (3 * query + 2 * key) + 4 * width * wide
    return plain + (width + 1) * (5 * hidden + query + wide) * lora


def engine_memory(recipe: "Recipe", shape: Shape) -> EngineMemory:
    rollout = recipe.rollout
    width = WIDTH["bfloat16" if rollout.num_gpus else "float32"] if rollout.dtype == "auto" else WIDTH[rollout.dtype]
    token = 2 * shape.layers * shape.kv_heads * shape.head_dim * width / rollout.tensor_parallel_size
    return EngineMemory(
        weights=shape.parameters * width / rollout.tensor_parallel_size,
        sequence=token * rollout.max_model_len,
        sequences=token * rollout.max_model_len * rollout.max_num_seqs,
    )


def judge_memory(objective: ObjectiveConfig) -> Need:
    """Of an objective's classifiers, wherever they are; a judge whose shape cannot be known counts nothing.

    A scorer that is fitted further is there twice, as it was and as it is."""
    needs = []
    judges = [*objective.judges.values(), *([objective.scorer] if objective.annotator is not None else [])]
    for judge, shape in itertools.chain.from_iterable(map(classifiers, judges)):
        width = WIDTH[judge.dtype]
        row = width * (2 * shape.intermediate + 4 * shape.hidden)  # of the layer that is being computed
        work = judge.batch_size * judge.max_length * row
        needs.append(Need(held=shape.parameters * width, work=work))
    return _sum(needs)


def classifiers(judge: ScorerConfig | None) -> Iterator[tuple[HuggingFaceScorerConfig, Shape]]:
    """Of a judge, or of its members, those whose shape can be known here."""
    for each in single(judge):
        shape = model_shape(each.model) if isinstance(each, HuggingFaceScorerConfig) else None
        if shape is not None and isinstance(each, HuggingFaceScorerConfig):
            yield each, shape


def engine_bytes(recipe: "Recipe", engine: EngineMemory, card: Card) -> float:
    """What an engine takes of each of its GPUs while it is awake."""
    rollout = recipe.rollout
    if rollout.kv_cache_bytes is not None:
        return engine.weights + rollout.kv_cache_bytes + ENGINE_WORK_BYTES
    return rollout.gpu_memory_utilization * card.memory


def gpu_loads(recipe: "Recipe", shape: Shape, card: Card) -> list[GpuLoad]:
    """Every GPU that the run asks for, its tenants placed as Ray does it: on the fullest first, pairs before judges."""
    rollout, learner = recipe.rollout, recipe.learner
    rank, engine = rank_memory(recipe, shape), engine_memory(recipe, shape)
    awake = Need(held=engine_bytes(recipe, engine, card) + PROCESS_BYTES)
    kept = Need(held=rank.kept + PROCESS_BYTES)
    busy = Need(held=rank.kept + rank.gradients + PROCESS_BYTES, work=rank.activations + rank.logits)
    actors: list[tuple[int, Tenant]] = []
    if rollout.colocated:
        share = round(rollout.num_gpus + learner.num_gpus, 4)
        asleep = Need(held=ENGINE_WORK_BYTES + PROCESS_BYTES)
        pair = Tenant(name="rollout+learner", share=share, sampling=_sum([awake, kept]), learning=_sum([asleep, busy]))
        actors.append((learner.ranks, pair))
    else:
        own = rollout.engines * rollout.tensor_parallel_size
        actors.append((own, Tenant(name="rollout", share=rollout.num_gpus, sampling=awake, learning=awake)))
        idle = busy if recipe.loop.max_staleness else kept
        actors.append((learner.ranks, Tenant(name="learner", share=learner.num_gpus, sampling=idle, learning=busy)))
    for panel in recipe.panels:
        objective = panel[0]
        judge = _sum([judge_memory(objective), Need(held=PROCESS_BYTES)])
        idle = judge if recipe.loop.max_staleness else Need(held=judge.held)
        name, share = f"reward-{panel_name(panel)}", min(1.0, objective.num_gpus)
        actors.append((objective.replicas, Tenant(name=name, share=share, sampling=judge, learning=idle)))
    return _placed([tenant for count, tenant in actors if tenant.share for _ in range(count)])


def problems(recipe: "Recipe", card: Card) -> list[str]:
    """Why the recipe cannot fit such cards, one line each; none where the policy's shape is not known."""
    shape = policy_shape(recipe)
    if shape is None:
        return []
    found, has = [], f"{card.name} has {_gib(card.memory)} GiB"
    for load in gpu_loads(recipe, shape, card):
        learning = load.learning.held
        sampling, budget = load.sampling.held, _budget(recipe, shape, load, card)
        others = sampling - budget
        if learning > card.memory and "learner" in load.names:
            rank = rank_memory(recipe, shape)
            parts = ", ".join(
                f"{name} {_gib(getattr(rank, name))}" for name in ("weights", "reference", "optimizer", "gradients")
            )
            found.append(f"{load.names}: must hold {_gib(learning)} GiB of a GPU ({parts}), {has}")
        elif budget and recipe.rollout.kv_cache_bytes is None:
            least = engine_memory(recipe, shape).least
            if others + least > card.memory:
                found.append(f"{load.names}: must hold {_gib(others + least)} GiB of a GPU to sample at all, {has}")
            elif sampling > card.memory:
                found.append(_utilization(recipe, "at most", (card.memory - others) / card.memory, load, others, card))
            elif budget < least:
                found.append(_utilization(recipe, "at least", least / card.memory + 0.01, load, others, card))
        elif sampling > card.memory:
            found.append(f"{load.names}: must hold {_gib(sampling)} GiB of a GPU, {has}")
    return found


def host_memory(recipe: "Recipe", shape: Shape) -> dict[str, float]:
    """Bytes that a run holds in the memory of its machines, all of them together, beside processes and files."""
    rollout, learner = recipe.rollout, recipe.learner
    rank, engine = rank_memory(recipe, shape), engine_memory(recipe, shape)
    judges = (panel[0].replicas * judge_memory(panel[0]).held for panel in recipe.panels if not panel[0].num_gpus)
    cache = rollout.kv_cache_bytes or min(engine.sequences, GIB)  # as `actors.engine` gives a CPU engine
    return {
        "sleeping engines": rollout.engines * engine.weights if rollout.colocated and rollout.num_gpus else 0.0,
        "engines": 0.0 if rollout.num_gpus else rollout.engines * (engine.weights + cache),
        "ranks": 0.0 if learner.num_gpus else learner.ranks * (rank.kept + rank.gradients),
        "offloaded optimizer": learner.ranks * rank.offloaded,
        "judges": sum(judges),
        "object store": float(recipe.cluster.object_store_bytes),
    }


def _budget(recipe: "Recipe", shape: Shape, load: GpuLoad, card: Card) -> float:
    """The engine's part of what the tenants hold while batches are sampled."""
    engines = sum(tenant.name.startswith("rollout") for tenant in load.tenants)
    return engines * engine_bytes(recipe, engine_memory(recipe, shape), card)


def _utilization(recipe: "Recipe", bound: str, value: float, load: GpuLoad, others: float, card: Card) -> str:
    rounded = int(value * 100) / 100
    return (
        f"rollout.gpu_memory_utilization must be {bound} {rounded:.2f} on a GPU of {_gib(card.memory)} GiB "
        f"({load.names}: {_gib(others)} GiB beside the engine), got {recipe.rollout.gpu_memory_utilization:g}"
    )


def _placed(tenants: Sequence[Tenant]) -> list[GpuLoad]:
    gpus = [[tenants[index] for index in gpu] for gpu in shares([tenant.share for tenant in tenants])]
    kinds = {tuple(tenant.name for tenant in gpu): tuple(gpu) for gpu in gpus}
    names = [tuple(tenant.name for tenant in gpu) for gpu in gpus]
    return [GpuLoad(count=names.count(kind), tenants=tenants) for kind, tenants in kinds.items()]


def shares(asked: Sequence[float]) -> list[list[int]]:
    """GPUs, each with the indices of those that are on it; who asks for none of a GPU is on none.

    Args:
        asked: of a GPU, in the order in which they come; each goes to the fullest that has room. More than one: so
            many GPUs of its own.
    """
    gpus: list[list[int]] = []
    for index, share in enumerate(asked):
        fits = [gpu for gpu in gpus if sum(asked[each] for each in gpu) + share <= 1 + 1e-6]
        if share > 1:
            gpus += [[index] for _ in range(round(share))]
        elif share and fits:
            max(fits, key=lambda gpu: sum(asked[each] for each in gpu)).append(index)
        elif share:
            gpus.append([index])
    return gpus


def _sum(needs: Sequence[Need]) -> Need:
    return Need(held=sum(need.held for need in needs), work=sum(need.work for need in needs))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
