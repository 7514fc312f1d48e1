"""From preference dialogues to everything the `hh-smollm2` recipe reads: prompts, harmlessness reward model, policy.

Prompts are what people ask first in the dialogues. The reward model is fitted on the whole pairs, from SmolLM2's own
weights; the policy learns to read w from its own answers, which that model scores among others.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learner.types import sha256_of
from orchestrator.errors import BadInput
from orchestrator.files import write_lines
from orchestrator.progress import TELL
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.dialogues.prepare import ASSISTANT, DialoguePair, plain_prompt, read_transcripts
from orchestrator.tasks.fitting.config import Optimization, RewardFitConfig
from orchestrator.tasks.smollm2.start import save_base
from orchestrator.tasks.teaching.teach import taught_from, teach_to_read
from rewards.prompts import Prompt
from rewards.section import Section

if TYPE_CHECKING:
    from orchestrator.config import Recipe

REWARD_TEMPLATE = "{prompt}\n\nAssistant: {response}"
"""Of the pairs, whose prompts begin with "Human:"; a recipe's scorer writes that itself."""


class DialogueSizes(Section):
    """Of the preparation. The defaults take two CPU cores about half an hour."""

    heldout: int = 200
    """First turns that are never trained on, by neither policy nor reward model."""
    shortest: int = 10
    longest: int = 160
    """Of the first turns that become prompts, in characters."""
    reward: Optimization = Optimization(
        steps=160,
        batch_size=8,
        learning_rate=2e-5,
        warmup_steps=10,
        weight_decay=0.1,
        group_by_length=True,
        bf16="native",
    )
    reward_context: int = 192
    """Tokens of a dialogue that the reward model reads; the start of a longer one is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Example: Split(training=(DialoguePair(...),), heldout=(DialoguePair(...),)); no first turn stands in both."""

    training: tuple[DialoguePair, ...]
    heldout: tuple[DialoguePair, ...]


def build_dialogues(
    directory: Path,
    recipe: "Recipe",
    *,
    sizes: DialogueSizes = DialogueSizes(),  # noqa: B008  # immutable
    progress: Callable[[str], None] = TELL,
) -> dict[str, Any]:
    """Build (or find) DIR/policy, DIR/rewards/harmlessness, DIR/prompts/{train,heldout}.jsonl; returns the manifest.

    Raises:
        BadInput: the data cannot be read or hold too few dialogues to split, the weights of SmolLM2 are nowhere, or a
            judge cannot be loaded.
        RunFailed: the model could not be sampled from.
    """
    assert recipe.assets is not None and recipe.assets.source is not None
    key = {
        **taught_from(recipe),
        "weights": recipe.assets.weights,
        "sizes": sizes.model_dump(mode="json"),
        "code": code_digest("dialogues", "smollm2", "teaching", "fitting"),
        "data": source_digest(recipe.assets.source),
    }
    build = partial(run_apart, _build, progress, recipe=recipe, sizes=sizes)
    return build_once(directory, key, lambda folder: build(folder=folder), progress=progress)


def source_digest(data: str) -> str:
    """What the data are, wherever they lie: the sha256 of a file; the name of a hub data set or folder."""
    file = Path(data)
    return sha256_of(file) if file.is_file() else data


def _build(progress: Callable[[str], None], *, folder: Path, recipe: "Recipe", sizes: DialogueSizes) -> dict[str, Any]:
    from orchestrator.tasks.fitting.bradley_terry import fit_reward

    assert recipe.assets is not None and recipe.assets.source is not None
    started = time.monotonic()
    transcripts = read_transcripts(recipe.assets.source)
    progress(
        f"{len(transcripts.pairs)} dialogue pairs read, {transcripts.skipped} rows without a shared prompt skipped"
    )
    split = split_dialogues(transcripts.pairs, heldout=sizes.heldout, seed=recipe.seed)
    training, heldout = (first_turns(pairs, sizes) for pairs in (split.training, split.heldout))
    for name, prompts in (("train", training), ("heldout", heldout)):
        write_lines(folder / "prompts" / f"{name}.jsonl", ({"prompt": prompt} for prompt in prompts))
    weights = save_base(progress, folder, recipe.assets.weights)
    reward = fit_reward(
        RewardFitConfig(
            output=str(folder / "rewards" / "harmlessness"),
            model=str(folder / "base"),
            template=REWARD_TEMPLATE,
            optimization=sizes.reward,
            attention="eager",
            max_length=sizes.reward_context,
            seed=recipe.seed,
        ),
        [asdict(pair) for pair in split.training],
        [asdict(pair) for pair in split.heldout],
        label="harmlessness",
        progress=progress,
    )
    assert reward.heldout_accuracy is not None
    low, high = share_interval(reward.heldout_accuracy, reward.heldout_rows)
    progress(
        f"harmlessness: {reward.heldout_accuracy:.3f} of {reward.heldout_rows} held-out pairs ranked as labelled "
        f"(95 % interval {low:.3f} to {high:.3f})"
    )
    taught = teach_to_read(progress, folder, str(folder / "base"), [Prompt(text=text) for text in training], recipe)
    return {
        "weights": weights,
        "pairs": len(transcripts.pairs),
        "skipped": transcripts.skipped,
        "prompts": {"train": len(training), "heldout": len(heldout)},
        "reward": {**reward.to_dict(), "heldout_accuracy_interval": [low, high]},
        "taught": taught,
        "seconds": time.monotonic() - started,
    }


def first_turn(pair: DialoguePair) -> str:
    """What the human asks first; "" where the dialogue does not begin with a human turn."""
    return plain_prompt(pair.prompt.partition(ASSISTANT)[0])


def first_turns(pairs: Sequence[DialoguePair], sizes: DialogueSizes) -> list[str]:
    """The different first turns of a prompt's length, in order of appearance."""
    found = dict.fromkeys(map(first_turn, pairs))
    return [text for text in found if sizes.shortest <= len(text) <= sizes.longest]


def split_dialogues(pairs: Sequence[DialoguePair], *, heldout: int, seed: int) -> Split:
    """Held-out first turns seen by nobody before: every pair that begins alike goes to the same side."""
    beginnings = sorted({first_turn(pair) for pair in pairs})
    if len(beginnings) < 2 * heldout:
        raise BadInput(
            f"data: needs at least {2 * heldout} different first turns to hold {heldout} out, got {len(beginnings)}"
        )
    chosen = np.random.default_rng([seed, 20]).choice(len(beginnings), size=heldout, replace=False)
    held = {beginnings[index] for index in chosen}
    return Split(
        training=tuple(pair for pair in pairs if first_turn(pair) not in held),
        heldout=tuple(pair for pair in pairs if first_turn(pair) in held),
    )


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` independent draws."""
    z = 1.959964
    center, spread = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (center - spread) / (1 + z**2 / count), (center + spread) / (1 + z**2 / count)
