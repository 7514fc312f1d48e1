"""Seconds of a step, estimated from a card's peaks, and which stage waits for which.

Every response is taken at its longest. Products and reads are counted; attention over a few hundred tokens, weight
updates and the time between stages are not.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.methods import make_method
from orchestrator.cards import Card
from orchestrator.estimate.memory import classifiers, engine_memory, rank_memory
from orchestrator.estimate.shapes import Shape
from rewards.config import ObjectiveConfig
from rewards.simplex import evaluation_grid

if TYPE_CHECKING:
    from orchestrator.config import Recipe

PRODUCTS_SHARE = 0.35
"""Of a card's peak that large products reach: a learner in plain PyTorch with padding, as others report it."""
BANDWIDTH_SHARE = 0.6
"""Of a card's bandwidth that decoding reaches."""
STEP_S = {True: 0.015, False: 0.004}
"""Least time of one token of a batch, by `rollout.enforce_eager`: launching kernels and scheduling (guessed)."""
LINK_BANDWIDTH = 20e9
"""Bytes a second from rank 0 to the engines: what PCIe gives, slower than NVLink (guessed)."""
CPU_FLOPS = 5e10
"""Of one CPU core, for a judge on CPU (guessed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds. Example: StepTime(generate=1.4, score=0.3, learn=3.6, sync=0.1, overlaps=True)"""

    generate: float
    score: float
    learn: float
    sync: float
    """The engines wait for the weights, and the learner for them."""
    overlaps: bool
    """Whether the next batch is sampled while the learner computes."""

    @property
    def sample(self) -> float:
        """Responses are scored while others are still being sampled."""
        return max(self.generate, self.score)

    @property
    def total(self) -> float:
        return (max(self.sample, self.learn) if self.overlaps else self.sample + self.learn) + self.sync

    @property
    def idle(self) -> float:
        """Share of a step in which an engine or a rank waits, the mean of both."""
        return 1 - (self.generate + self.learn) / (2 * self.total)

    @property
    def verdict(self) -> str:
        if not self.overlaps:
            return f"one after the other: the learner waits {self.sample:.1f} s, the engines {self.learn:.1f} s"
        if self.learn < self.sample:
            return f"the learner waits {self.sample - self.learn:.1f} s of it for samples"
        return f"engines and judges wait {self.learn - self.sample:.1f} s of it for the learner"


def step_time(recipe: "Recipe", shape: Shape, card: Card, prompt_tokens: float) -> StepTime | None:
    """None for a card whose peaks are not known, and without engines and ranks on GPUs.

    Args:
        prompt_tokens: of an average prompt, w included.
    """
    if not (card.flops and card.bandwidth and recipe.rollout.num_gpus and recipe.learner.num_gpus):
        return None
    prompts, responses = recipe.loop.prompts_per_step, recipe.loop.responses_per_prompt
    return StepTime(
        generate=generate_s(recipe, shape, card, prompt_tokens, prompts=prompts, responses=prompts * responses),
        score=score_s(recipe, card, prompt_tokens),
        learn=learner_flops(recipe, shape, prompt_tokens) / (PRODUCTS_SHARE * card.flops * recipe.learner.ranks),
        sync=rank_memory(recipe, shape).sent / LINK_BANDWIDTH,
        overlaps=recipe.loop.max_staleness > 0,
    )


def evaluation_s(recipe: "Recipe", shape: Shape, card: Card, prompt_tokens: float) -> float:
    """Of sampling for one evaluation; its scores come while others are sampled."""
    prompts = len(evaluation_grid(recipe.num_objectives)) * recipe.evaluate.prompts
    responses = prompts * recipe.evaluate.samples
    return generate_s(recipe, shape, card, prompt_tokens, prompts=prompts, responses=responses)


def generate_s(
    recipe: "Recipe", shape: Shape, card: Card, prompt_tokens: float, *, prompts: int, responses: int
) -> float:
    """Of sampling so many responses on all engines: prompts once each, then all weights and keys for each token."""
    assert card.flops and card.bandwidth
    rollout, engine = recipe.rollout, engine_memory(recipe, shape)
    split = rollout.tensor_parallel_size
    each = math.ceil(responses / rollout.engines)
    rounds = math.ceil(each / rollout.max_num_seqs)
    together = each / rounds
    context = (prompt_tokens + rollout.max_new_tokens / 2) / rollout.max_model_len  # of a longest sequence
    read_s = (engine.weights + together * context * engine.sequence) / (BANDWIDTH_SHARE * card.bandwidth)
    products_s = 2 * shape.parameters * together / (PRODUCTS_SHARE * card.flops * split)
    token_s = max(read_s, products_s, STEP_S[rollout.enforce_eager])
    prefill = 2 * shape.parameters * prompt_tokens * prompts / rollout.engines
    return rounds * rollout.max_new_tokens * token_s + prefill / (PRODUCTS_SHARE * card.flops * split)


def learner_flops(recipe: "Recipe", shape: Shape, prompt_tokens: float) -> float:
    """Products of one update over all ranks, two for each parameter and token and pass.

    Forward and back to the activations; back to the weights unless these are frozen under adapters; the reference
    forward; forward again with gradient checkpointing. A prompt passes once under each of its vectors.
    """
    learner, method = recipe.learner, make_method(recipe.method)
    passes = 2 + (learner.lora is None) + method.uses_reference + learner.gradient_checkpointing
    loop = recipe.loop
    together = method.responses_per_example(loop.responses_per_prompt, recipe.num_objectives)
    tokens = recipe.passed_vectors * (prompt_tokens + together * recipe.rollout.max_new_tokens)
    examples = loop.prompts_per_step * method.examples_per_prompt(loop.responses_per_prompt)
    return 2 * passes * shape.parameters * examples * tokens


def score_s(recipe: "Recipe", card: Card, prompt_tokens: float) -> float:
    """Of all judges: those on shares of GPUs are taken to share one and to take turns, the others work side by side."""
    assert card.flops
    alone, in_turn = 0.0, 0.0
    for objective, *_ in recipe.panels:
        flops = _judge_flops(recipe, objective, prompt_tokens) / objective.replicas
        if not objective.num_gpus:
            alone = max(alone, flops / (CPU_FLOPS * max(1.0, objective.num_cpus)))
        elif objective.num_gpus < 1:
            in_turn += flops / (PRODUCTS_SHARE * card.flops)
        else:
            alone = max(alone, flops / (PRODUCTS_SHARE * card.flops))
    return max(alone, in_turn)


def _judge_flops(recipe: "Recipe", objective: ObjectiveConfig, prompt_tokens: float) -> float:
    """Products of one objective's judge over all responses of a step; 0 for one whose shape cannot be known."""
    flops, responses = 0.0, recipe.loop.prompts_per_step * recipe.loop.responses_per_prompt
    for judge, shape in classifiers(objective.scorer):
        length = min(judge.max_length, prompt_tokens + recipe.rollout.max_new_tokens)
        flops += 2 * shape.parameters * responses * length
    return flops
