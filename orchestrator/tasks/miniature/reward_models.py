"""The reward models: samples of the starting policy, compared by the oracle, one classifier for each objective."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.tasks.fitting.bradley_terry import fit_reward
from orchestrator.tasks.fitting.config import RewardFitConfig
from orchestrator.tasks.fitting.supervised import sample_responses
from orchestrator.tasks.fitting.trainer import FitReport
from orchestrator.tasks.miniature import oracle, spec
from orchestrator.tasks.miniature.corpus import renderer, sample_preferences
from orchestrator.tasks.miniature.grammar import build_tokenizer
from orchestrator.tasks.miniature.spec import RewardSpec

TIE = 1e-9

Responses = list[tuple[str, list[str]]]  # prompt, its responses


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
        sample_preferences(rng, len(asked), len(objectives)),
        renderer=renderer(objectives),
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
        tokenizer=build_tokenizer(),
        label=f"reward model {objective}",
        progress=progress,
    )
