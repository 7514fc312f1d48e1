"""The starting policy, a small Llama fitted to the corpus, and the gate that it reads w; then the reward models.

These learn from samples of the policy, compared by the oracle, one classifier for each objective.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.tasks.fitting.bradley_terry import fit_reward
from orchestrator.tasks.fitting.config import PolicyFitConfig, RewardFitConfig
from orchestrator.tasks.fitting.models import llama_config, put_levels_on_a_line
from orchestrator.tasks.fitting.supervised import fit_policy, sample_responses
from orchestrator.tasks.fitting.trainer import FitReport
from orchestrator.tasks.miniature import grammar, oracle, spec
from orchestrator.tasks.miniature.spec import GateSpec, MiniatureSpec, PolicySpec, RewardSpec
from rewards.pareto import spearman
from rewards.simplex import evaluation_grid

TIE = 1e-9
Responses = list[tuple[str, list[str]]]  # prompt, its responses
HELDOUT_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How well a fitted policy reads w: rank correlation of w_k with the mean oracle score over the grid."""

    spearman: tuple[float, ...]  # [K]
    min_spearman: float
    ungrammatical_rate: float

    @property
    def passed(self) -> bool:
        return min(self.spearman) >= self.min_spearman


def fit_starting_policy(
    directory: Path,
    prompts: Sequence[str],
    *,
    objectives: Sequence[str],
    seed: int,
    steps: int | None = None,
    spec: MiniatureSpec = MiniatureSpec(),  # noqa: B008  # immutable
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Fits a new policy on text drawn from the corpus and saves it in `directory` with its tokenizer.

    Args:
        prompts: training prompts.
        steps: optimizer steps; None takes the spec's. A handful gives a policy good enough to test plumbing with.
    """
    settings = spec.policy
    steps = settings.steps_for(len(objectives)) if steps is None else steps
    rng = np.random.default_rng([seed, 1])
    tokenizer = grammar.build_tokenizer()
    model = new_policy(settings, tokenizer, seed)

    def rows(count: int) -> list[dict]:
        return grammar.sample_rows(rng, prompts, count, objectives=objectives, corpus=spec.corpus)

    config = PolicyFitConfig(
        output=str(directory),
        architecture=settings.architecture(),
        objectives=tuple(objectives),
        optimization=settings.optimization(steps, batch_size=settings.batch_size),
        seed=seed,
        device="cpu",
    )
    training = rows(steps * settings.batch_size)
    return fit_policy(config, training, rows(HELDOUT_ROWS), model=model, tokenizer=tokenizer, progress=progress)


def new_policy(settings: PolicySpec, tokenizer: Any, seed: int) -> Any:
    """The policy before fitting; only the level tokens are not plain noise: they start on a line."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config(settings.architecture(), tokenizer))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _initial_std(name, settings), generator=generator)
    put_levels_on_a_line(
        model.get_input_embeddings().weight,
        tokenizer.convert_tokens_to_ids(list(spec.LEVELS)),
        direction_std=settings.level_direction_std,
        noise_std=settings.level_noise_std,
        generator=generator,
    )
    return model


def _initial_std(name: str, settings: PolicySpec) -> float:
    if "embed" in name:
        return settings.embedding_std
    return settings.output_std if "o_proj" in name or "down_proj" in name else settings.linear_std


def measure_gate(
    directory: Path, prompts: Sequence[str], *, objectives: Sequence[str], seed: int, gate: GateSpec
) -> Gate:
    """Samples the fitted policy over the evaluation grid and asks the oracle."""
    grid = evaluation_grid(len(objectives))  # [N, K]
    asked = list(prompts[: gate.prompts]) * gate.samples
    all_prompts = asked * len(grid)
    responses = sample_responses(
        directory,
        all_prompts,
        np.repeat(grid, len(asked), axis=0),
        renderer=grammar.renderer(objectives),
        max_new_tokens=spec.MAX_NEW_TOKENS,
        seed=seed + 1,
    )
    scores = oracle.scores(all_prompts, responses, objectives)
    points = scores.reshape(len(grid), len(asked), len(objectives)).mean(axis=1)
    return Gate(
        spearman=tuple(float(value) for value in spearman(grid, points)),
        min_spearman=gate.min_spearman,
        ungrammatical_rate=oracle.ungrammatical_rate(all_prompts, responses),
    )


def sample_responses_to_compare(
    policy: Path, prompts: Sequence[str], *, objectives: Sequence[str], seed: int, settings: RewardSpec
) -> Responses:
    """Responses of the fitted policy, several to each prompt, each under a w of its own, uniform on the simplex.

    Different w in one comparison show a reward model the whole range of answers it will have to judge later.
    """
    rng = np.random.default_rng([seed, 2])
    prompts, each = prompts[: settings.num_prompts], settings.responses_per_prompt
    asked = [prompt for prompt in prompts for _ in range(each)]
    responses = sample_responses(
        policy,
        asked,
        grammar.sample_preferences(rng, len(asked), len(objectives)),
        renderer=grammar.renderer(objectives),
        max_new_tokens=spec.MAX_NEW_TOKENS,
        seed=seed + 2,
    )
    return [(prompt, responses[index * each : (index + 1) * each]) for index, prompt in enumerate(prompts)]


def label_pairs(responses: Responses, objective: str, *, sharpness: float) -> list[dict[str, Any]]:
    """Rows {"prompt", "chosen", "rejected", "probability"} of every two responses that the oracle tells apart.

    The oracle labels as a panel of judges would: the further apart two scores, the more of them agree,
    sigmoid(sharpness * difference). Labels without that share would teach a reward model ranks only, flat at both ends.
    """
    rows = []
    for prompt, texts in responses:
        scores = oracle.scores([prompt] * len(texts), texts, [objective])[:, 0]
        for one, other in itertools.combinations(range(len(texts)), 2):
            if abs(scores[one] - scores[other]) > TIE:
                better, worse = (one, other) if scores[one] > scores[other] else (other, one)
                rows.append(
                    {
                        "prompt": prompt,
                        "chosen": texts[better],
                        "rejected": texts[worse],
                        "probability": 1 / (1 + math.exp(-sharpness * (scores[better] - scores[worse]))),
                    }
                )
    return rows


def fit_reward_model(
    folder: Path,
    responses: Responses,
    objective: str,
    *,
    seed: int,
    settings: RewardSpec,
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Trains the classifier of one objective and saves it in `folder` with its tokenizer."""
    config = RewardFitConfig(
        output=str(folder),
        architecture=settings.architecture(init_std=settings.init_std),
        template=settings.template,
        optimization=settings.optimization(settings.steps, batch_size=settings.prompts_per_step),
        heldout_fraction=settings.heldout_fraction,
        seed=seed,
        device="cpu",
    )
    return fit_reward(
        config,
        label_pairs(responses, objective, sharpness=settings.label_sharpness),
        tokenizer=grammar.build_tokenizer(),
        label=f"reward model {objective}",
        progress=progress,
    )
