"""The text that the starting policy imitates: responses by writers whose taste leaks, a little, from w."""

import random
from collections.abc import Sequence

import numpy as np

from orchestrator.tasks.miniature import grammar, spec
from orchestrator.tasks.miniature.spec import CorpusSpec
from rewards.config import PreferencesConfig
from rewards.preferences import PromptRenderer, quantize

KINDS = (spec.HELP, spec.CAUTION, spec.JOKE, spec.FILLER)
LEAK_SCALE = 4.0


def renderer(objectives: Sequence[str]) -> PromptRenderer:
    """G(x, w) as every recipe of the miniature writes it: the defaults of a recipe."""
    preferences = PreferencesConfig()
    return PromptRenderer(preferences.conditioning, objectives, preferences.decimals)


def sample_preferences(rng: np.random.Generator, count: int, num_objectives: int) -> np.ndarray:
    """Uniform on the simplex, rounded to printed tenths [N, K]."""
    return quantize(rng.dirichlet(np.ones(num_objectives), size=count), 1)


def sample_rows(
    rng: np.random.Generator, prompts: Sequence[str], count: int, *, objectives: Sequence[str], corpus: CorpusSpec
) -> list[dict]:
    """`count` rows {"prompt", "response", "preference"} for supervised fitting; prompts uniform, w uniform."""
    preferences = sample_preferences(rng, count, len(objectives)).tolist()
    chosen = rng.integers(len(prompts), size=count).tolist()
    dice = random.Random(int(rng.integers(2**63)))  # scalar draws are several times faster than numpy's
    return [
        {
            "prompt": prompts[index],
            "response": sample_response(dice, prompts[index], preference, objectives=objectives, corpus=corpus),
            "preference": preference,
        }
        for index, preference in zip(chosen, preferences, strict=True)
    ]


def sample_response(
    dice: random.Random, prompt: str, preference: Sequence[float], *, objectives: Sequence[str], corpus: CorpusSpec
) -> str:
    """One response to `prompt` by a writer of random taste who has heard of w [K]; at most the token budget long."""
    while True:
        response = _write(dice, prompt, preference, objectives, corpus)
        if len(response.split()) < spec.MAX_NEW_TOKENS:  # strictly: the end-of-sequence token must fit too
            return response


def _write(
    dice: random.Random, prompt: str, preference: Sequence[float], objectives: Sequence[str], corpus: CorpusSpec
) -> str:
    own_topic = grammar.topic_of(prompt)
    taste = {kind: dice.expovariate(1.0) for kind in KINDS}
    for name, weight in zip(objectives, preference, strict=True):
        taste[spec.OWN_KIND[name]] += LEAK_SCALE * corpus.leak * weight
    used: set[str] = set()
    words: list[str] = []
    for kind in dice.choices(KINDS, weights=list(taste.values()), k=dice.choice(corpus.num_sentences)):
        if kind == spec.CAUTION and dice.random() < corpus.refusal_share:
            kind = spec.REFUSAL
        template = _draw_template(dice, spec.SENTENCE_TEMPLATES[kind], used, corpus.redraws)
        topic = dice.choice(spec.TOPICS) if dice.random() < corpus.stray_topic else own_topic
        words += [grammar.realise(template, topic, dice.choice(grammar.variants(template))), spec.SENTENCE_END]
    return " ".join(words)


def _draw_template(dice: random.Random, templates: Sequence[str], used: set[str], redraws: int) -> str:
    template = dice.choice(templates)
    for _ in range(redraws):
        if template not in used:
            break
        template = dice.choice(templates)
    used.add(template)
    return template
