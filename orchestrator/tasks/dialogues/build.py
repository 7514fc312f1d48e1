"""From preference dialogues to everything the `hh-small` recipe reads: prompts, policy, harmlessness reward model.

The starting policy is fitted from random weights, first on whole dialogues, then on answers conditioned on w, so that
it can read w before the online stage (a policy that cannot read w never learns to be steered by it). Whether it does is
measured in the end.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from learner.types import sha256_of
from orchestrator.errors import BadInput
from orchestrator.files import write_lines
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.dialogues.prepare import DialoguePair, read_transcripts, shorten_prompt
from orchestrator.tasks.fitting.config import Architecture, ByteLevelBPE, Optimization, PolicyFitConfig, RewardFitConfig
from rewards.config import ConditioningConfig, PreferencesConfig
from rewards.preferences import PromptRenderer, evaluation_grid
from rewards.pretrained import load_model, load_tokenizer

OBJECTIVES = ("harmlessness", "detail")
CONDITIONING = ConditioningConfig(template="{prompt}\n\n{weights}\n\nAssistant:", weight="<{name}={weight}>")
LEVELS = {name: tuple(f"<{name}={level / 10:.1f}>" for level in range(11)) for name in OBJECTIVES}
"""How `CONDITIONING` writes each weight, lowest first. One token each: a number apart from its name would have to be
bound to it by position, which so small a policy hardly learns from so few dialogues."""
REWARD_TEMPLATE = "{prompt}\n\nAssistant: {response}"
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
CHOSEN_SHIFT = 0.05
"""By how much a chosen answer weighs harmlessness more than a rejected one of its length."""


class DialogueSpec(PreferencesConfig):
    """Sizes of the preparation. The defaults fit two CPU cores and a few thousand dialogues."""

    conditioning: ConditioningConfig = CONDITIONING
    heldout_prompts: int = 200
    context: int = 320
    """Longest conditioned prompt plus answer, in tokens."""
    max_answer_tokens: int = 64
    """Room kept for the answer; the oldest turns of a longer dialogue are dropped."""
    tokenizer: ByteLevelBPE = ByteLevelBPE(
        vocab_size=4096,
        special_words=tuple(word for words in LEVELS.values() for word in words),
    )
    architecture: Architecture = Architecture(
        hidden_size=256, num_layers=6, num_heads=4, intermediate_size=704, max_positions=512
    )
    pretraining: Optimization = Optimization(
        steps=320, batch_size=8, learning_rate=2e-3, warmup_steps=40, group_by_length=True
    )
    conditioned: Optimization = Optimization(
        steps=1200, batch_size=8, learning_rate=1e-3, warmup_steps=20, final_learning_rate_ratio=0.1, log_every=100
    )
    """Small batches, many steps: nothing of w is read for the first 400 or so, then suddenly much. Mixed in length on
    purpose: w goes with the length, and batches of one length teach it badly."""
    conditioned_context: int = 80
    """Tokens of a row of the conditioned fit; the start of a longer dialogue is cut, w and the answer stay."""
    conditioned_words: int = 30
    """Longest answer of the conditioned fit, so that its end fits into `max_answer_tokens`."""
    control_prompts: int = 16
    """Held-out prompts on which the fitted policy is asked for answers under the evaluation grid."""
    reward: Optimization = Optimization(
        steps=160, batch_size=8, learning_rate=2e-4, warmup_steps=20, weight_decay=0.1, group_by_length=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Example: Split(training=(DialoguePair(...),), heldout=(DialoguePair(...),)); no prompt stands in both."""

    training: tuple[DialoguePair, ...]
    heldout: tuple[DialoguePair, ...]


def build_dialogues(
    directory: Path,
    *,
    data: str,
    seed: int = 0,
    spec: DialogueSpec | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Build (or find) DIR/policy, DIR/rewards/harmlessness, DIR/prompts/{train,heldout}.jsonl; returns the manifest.

    Raises:
        BadInput: the data cannot be read, or hold too few dialogues to split.
    """
    spec = spec or DialogueSpec()
    key = {
        "spec": spec.model_dump(mode="json"),
        "code": code_digest("dialogues", "fitting"),
        "data": source_digest(data),
        "seed": seed,
    }
    return build_once(directory, key, lambda folder: _build(folder, data, seed, spec, progress), progress=progress)


def source_digest(data: str) -> str:
    """What the data are, wherever they lie: the sha256 of a file; the name of a hub data set or folder."""
    file = Path(data)
    return sha256_of(file) if file.is_file() else data


def _build(folder: Path, data: str, seed: int, spec: DialogueSpec, progress: Callable[[str], None]) -> dict[str, Any]:
    from orchestrator.tasks.fitting.bradley_terry import fit_reward
    from orchestrator.tasks.fitting.models import train_byte_level_bpe
    from orchestrator.tasks.fitting.supervised import fit_policy

    started = time.monotonic()
    transcripts = read_transcripts(data)
    progress(
        f"{len(transcripts.pairs)} dialogue pairs read, {transcripts.skipped} rows without a shared prompt skipped"
    )
    split = split_dialogues(transcripts.pairs, heldout=spec.heldout_prompts, seed=seed)
    tokenizer = train_byte_level_bpe(spec.tokenizer, _texts(split.training))
    split, dropped, shortened = fit_to_context(split, spec, tokenizer)
    progress(f"prompts: {shortened} lost their oldest turns, {dropped} dropped as too long")
    for name, pairs in (("train", split.training), ("heldout", split.heldout)):
        write_lines(folder / "prompts" / f"{name}.jsonl", ({"prompt": pair.prompt} for pair in pairs))

    shared: dict[str, Any] = {"max_length": spec.context, "seed": seed}
    pretrained = fit_policy(
        PolicyFitConfig(
            output=str(folder / "pretrained"), architecture=spec.architecture, optimization=spec.pretraining, **shared
        ),
        [{"prompt": "", "response": text} for text in _texts(split.training)],
        tokenizer=tokenizer,
        progress=progress,
    )
    model, tokenizer = _with_levels_in_order(folder / "pretrained", seed)
    policy = fit_policy(
        PolicyFitConfig(
            output=str(folder / "policy"),
            model=str(folder / "pretrained"),
            objectives=OBJECTIVES,
            preferences=PreferencesConfig(conditioning=spec.conditioning, decimals=spec.decimals),
            optimization=spec.conditioned,
            max_length=spec.conditioned_context,
            seed=seed,
        ),
        conditioned_rows(split.training, seed=seed, max_words=spec.conditioned_words),
        conditioned_rows(split.heldout, seed=seed + 1, max_words=spec.conditioned_words),
        model=model,
        tokenizer=tokenizer,
        progress=progress,
    )
    reward = fit_reward(
        RewardFitConfig(
            output=str(folder / "rewards" / "harmlessness"),
            model=str(folder / "pretrained"),
            template=REWARD_TEMPLATE,
            optimization=spec.reward,
            **shared,
        ),
        [asdict(pair) for pair in split.training],
        [asdict(pair) for pair in split.heldout],
        label="harmlessness",
        progress=progress,
    )
    progress(f"harmlessness reward model: {reward.heldout_accuracy:.3f} of held-out pairs ranked as labelled")
    control = measure_control(
        folder / "policy",
        [pair.prompt for pair in split.heldout[: spec.control_prompts]],
        renderer=PromptRenderer(spec.conditioning, OBJECTIVES, spec.decimals),
        max_new_tokens=spec.max_answer_tokens,
        seed=seed,
    )
    progress(f"starting policy: rank correlation of the weight of detail and the length of answers {control:.2f}")
    return {
        "pairs": len(transcripts.pairs),
        "skipped": transcripts.skipped,
        "shortened": shortened,
        "dropped": dropped,
        "pretrained": pretrained.to_dict(),
        "policy": policy.to_dict(),
        "reward": reward.to_dict(),
        "control": control,
        "seconds": time.monotonic() - started,
    }


def _with_levels_in_order(pretrained: Path, seed: int) -> tuple[Any, Any]:
    """(model, tokenizer) of the pretrained policy, whose level tokens no dialogue has taught anything yet."""
    import torch

    from orchestrator.tasks.fitting.models import put_levels_on_a_line

    model = load_model("AutoModelForCausalLM", str(pretrained), head="whole", dtype=torch.float32)
    tokenizer = load_tokenizer(str(pretrained))
    embedding = model.get_input_embeddings().weight
    spread = float(embedding.detach().std())
    generator = torch.Generator().manual_seed(seed)
    for words in LEVELS.values():
        put_levels_on_a_line(
            embedding,
            tokenizer.convert_tokens_to_ids(list(words)),
            center_std=spread,
            direction_std=2 * spread,
            noise_std=0.2 * spread,
            generator=generator,
        )
    return model, tokenizer


def split_dialogues(pairs: Sequence[DialoguePair], *, heldout: int, seed: int) -> Split:
    """Held-out prompts first seen by nobody: every pair of a prompt goes to the same side."""
    prompts = sorted({pair.prompt for pair in pairs})
    if len(prompts) < 2 * heldout:
        raise BadInput(
            f"data: needs at least {2 * heldout} different prompts to hold {heldout} out, got {len(prompts)}"
        )
    chosen = np.random.default_rng([seed, 20]).choice(len(prompts), size=heldout, replace=False)
    held = {prompts[index] for index in chosen}
    return Split(
        training=tuple(pair for pair in pairs if pair.prompt not in held),
        heldout=tuple(pair for pair in pairs if pair.prompt in held),
    )


def fit_to_context(split: Split, spec: DialogueSpec, tokenizer: Any) -> tuple[Split, int, int]:
    """Prompts shortened to leave room for an answer: (split, pairs dropped, pairs shortened)."""
    renderer = PromptRenderer(spec.conditioning, OBJECTIVES, spec.decimals, tokenizer)
    room = spec.context - spec.max_answer_tokens
    dropped = shortened = 0

    def fits(prompt: str) -> bool:
        return len(renderer.token_ids(prompt, [0.5, 0.5])) <= room

    def fit(pairs: Sequence[DialoguePair]) -> tuple[DialoguePair, ...]:
        nonlocal dropped, shortened
        kept = []
        for pair in pairs:
            prompt = shorten_prompt(pair.prompt, fits=fits)
            if prompt is None:
                dropped += 1
                continue
            shortened += prompt != pair.prompt
            kept.append(replace(pair, prompt=prompt))
        return tuple(kept)

    return Split(training=fit(split.training), heldout=fit(split.heldout)), dropped, shortened


def _texts(pairs: Sequence[DialoguePair]) -> list[str]:
    return [f"{pair.prompt}\n\nAssistant: {answer}" for pair in pairs for answer in (pair.chosen, pair.rejected)]


def conditioned_rows(pairs: Sequence[DialoguePair], *, seed: int, max_words: int) -> list[dict[str, Any]]:
    """Rows {"prompt", "response", "preference"} whose w says what the answer already is.

    The weight of detail is the rank of the answer's length (0 the shortest, 1 the longest), a little less when people
    chose the answer; the rest is harmlessness's. An answer stands for its openings too: one of them, drawn among
    those that end with a sentence, is a row of its own, so that one prompt is seen answered at different lengths.
    """
    rng = np.random.default_rng([seed, 21])
    answers = []  # prompt, text, shift of the weight of detail
    for pair in pairs:
        for answer, shift in ((pair.chosen, -CHOSEN_SHIFT), (pair.rejected, CHOSEN_SHIFT)):
            *shorter, longest = openings(answer, max_words) or [""]
            drawn = [shorter[rng.integers(len(shorter))]] if shorter else []
            answers += [(pair.prompt, text, shift) for text in (longest, *drawn) if text]
    lengths = np.array([len(text.split()) for _, text, _ in answers])
    # Ties are ranked at random, so that answers of one length do not all stand at one end.
    rank = np.empty(len(lengths))
    rank[np.lexsort((rng.random(len(lengths)), lengths))] = np.linspace(0, 1, len(lengths))
    detail = np.clip(rank + [shift for _, _, shift in answers], 0, 1)
    return [
        {"prompt": prompt, "response": text, "preference": [float(1 - w), float(w)]}
        for (prompt, text, _), w in zip(answers, detail, strict=True)
    ]


def openings(answer: str, max_words: int) -> list[str]:
    """The beginnings of an answer of at most `max_words` words that end with a sentence (or are it all), rising."""
    ends = [match.end() for match in SENTENCE_END.finditer(answer)]
    texts = [answer[:end] for end in dict.fromkeys((*ends, len(answer)))]
    return [text for text in texts if len(text.split()) <= max_words]


def measure_control(
    policy: Path, prompts: Sequence[str], *, renderer: PromptRenderer, max_new_tokens: int, seed: int
) -> float:
    """Spearman over the evaluation grid of the weight of detail (the last objective) and the mean log(1 + words)."""
    from orchestrator.tasks.fitting.supervised import sample_responses
    from rewards.functions import detail
    from rewards.pareto import spearman

    grid = evaluation_grid(2)  # [N, 2]
    asked = list(prompts) * len(grid)
    responses = sample_responses(
        policy,
        asked,
        np.repeat(grid, len(prompts), axis=0),
        renderer=renderer,
        max_new_tokens=max_new_tokens,
        seed=seed + 1,
    )
    lengths = np.reshape(detail(asked, responses), (len(grid), len(prompts))).mean(axis=1)
    return float(spearman(grid, np.stack([-lengths, lengths], axis=1))[-1])
