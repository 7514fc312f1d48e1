"""The reward models: pairs of starting-policy samples, labelled by the oracle, one classifier for each objective."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from orchestrator.fitting.config import Architecture, Optimization, RewardFitConfig
from orchestrator.fitting.report import FitReport
from orchestrator.fitting.reward import fit_reward
from orchestrator.miniature import oracle, spec
from orchestrator.miniature.corpus import sample_preferences
from orchestrator.miniature.sampling import sample_responses
from orchestrator.miniature.spec import RewardSpec
from orchestrator.miniature.tokenizer import build_tokenizer

Pair = tuple[str, str, str]  # prompt, two responses


def sample_pairs(
    policy: Path, prompts: Sequence[str], *, objectives: Sequence[str], seed: int, count: int
) -> list[Pair]:
    """Pairs of responses of the fitted policy, both under the same w, uniform on the simplex; shared by all objectives."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rng = np.random.default_rng([seed, 2])
    preferences = np.repeat(sample_preferences(rng, count, len(objectives)), 2, axis=0)
    asked = [prompts[index] for index in np.repeat(rng.integers(len(prompts), size=count), 2)]
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    responses = sample_responses(model, tokenizer, asked, preferences, objectives=objectives, seed=seed + 2)
    return list(zip(asked[::2], responses[::2], responses[1::2], strict=True))


def label_pairs(pairs: Sequence[Pair], objective: str) -> list[dict[str, str]]:
    """Rows {"prompt", "chosen", "rejected"} by the oracle; pairs it cannot tell apart are left out."""
    prompts, first, second = zip(*pairs, strict=True)
    gap = oracle.scores(prompts, first, [objective])[:, 0] - oracle.scores(prompts, second, [objective])[:, 0]
    return [
        {"prompt": prompt, "chosen": one if more > 0 else other, "rejected": other if more > 0 else one}
        for (prompt, one, other), more in zip(pairs, gap, strict=True)
        if abs(more) > 1e-9
    ]


def fit_reward_model(
    directory: Path,
    pairs: Sequence[Pair],
    objective: str,
    *,
    seed: int,
    settings: RewardSpec,
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Trains the classifier of one objective and saves it in `directory` with its tokenizer."""
    config = RewardFitConfig(
        output=str(directory),
        architecture=Architecture(
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            intermediate_size=settings.intermediate_size,
            max_positions=spec.MAX_MODEL_LEN,
            init_std=settings.init_std,
        ),
        template=settings.template,
        optimization=Optimization(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=min(settings.warmup_steps, settings.steps),
            final_learning_rate_ratio=settings.final_learning_rate_ratio,
            adam_betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
        ),
        heldout_fraction=settings.heldout_fraction,
        seed=seed,
        device="cpu",
    )
    return fit_reward(
        config,
        label_pairs(pairs, objective),
        tokenizer=build_tokenizer(),
        label=f"reward model {objective}",
        progress=progress,
    )
