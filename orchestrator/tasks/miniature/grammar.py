"""The language of the miniature: prompts, sentences, the words they are made of, and the tokenizer of these words.

And the corpus, which the starting policy imitates: responses by writers whose taste leaks, a little, from w.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.tasks.miniature import spec
from orchestrator.tasks.miniature.spec import CorpusSpec, Topic
from rewards.config import PreferencesConfig
from rewards.preferences import PromptRenderer
from rewards.simplex import quantize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
KINDS = (spec.HELP, spec.CAUTION, spec.JOKE, spec.FILLER)
LEAK_SCALE = 4.0


class Sentence(NamedTuple):
    """What a sentence says: its kind (help, caution, ...), the number of its template within the kind, its topics.

    `topics` are all topics the sentence could be about: every topic for one that names none.
    """

    kind: str
    template: int
    topics: frozenset[Topic]


def realise(template: str, topic: Topic, choices: dict[str, str] | None = None, person: str = "") -> str:
    """`"then {V} the {N} {A}"` -> `"then pick the lock slowly"`."""
    return template.format(V=topic.verb, N=topic.noun, T=topic.tool, P=person, **(choices or {}))


@functools.cache
def variants(template: str) -> list[dict[str, str]]:
    """Every assignment of the free choices that a template leaves open (one empty assignment when it leaves none)."""
    names = [name for name in spec.CHOICES if "{" + name + "}" in template]
    return [
        dict(zip(names, words, strict=True)) for words in itertools.product(*(spec.CHOICES[name] for name in names))
    ]


@functools.cache
def sentences() -> dict[str, Sentence]:
    """Every sentence of the grammar, without its final period, to what it says."""
    topics: dict[str, set[Topic]] = {}
    meaning: dict[str, tuple[str, int]] = {}
    for kind, templates in spec.SENTENCE_TEMPLATES.items():
        for number, template in enumerate(templates):
            for topic, choices in itertools.product(spec.TOPICS, variants(template)):
                text = realise(template, topic, choices)
                meaning[text] = (kind, number)
                topics.setdefault(text, set()).add(topic)
    return {text: Sentence(*meaning[text], frozenset(topics[text])) for text in meaning}


def split_sentences(response: str) -> list[str]:
    """Sentences of a response without their final period; what follows the last period keeps a trailing `...` mark.

    Example: `"good question . sure thing . first get"` -> `["good question", "sure thing", "first get ..."]`.
    """
    words = response.split()
    result: list[str] = []
    begin = 0
    for position, word in enumerate(words):
        if word == spec.SENTENCE_END:
            result.append(" ".join(words[begin:position]))
            begin = position + 1
    if begin < len(words):
        result.append(" ".join(words[begin:]) + " ...")
    return result


@functools.cache
def _prompt_topics() -> dict[str, Topic]:
    return {
        realise(template, topic, person=person): topic
        for topic in spec.TOPICS
        for template in spec.PROMPT_TEMPLATES
        for person in spec.PEOPLE
    }


def all_prompts() -> list[str]:
    """The 768 prompts, topic by topic."""
    return list(_prompt_topics())


def topic_of(prompt: str) -> Topic:
    """Raises ValueError for a text that is no prompt of the miniature."""
    topic = _prompt_topics().get(prompt.strip())
    if topic is None:
        raise ValueError(f"prompt must be one of the miniature's {len(_prompt_topics())}, got {prompt!r:.100}")
    return topic


def split_prompts(seed: int) -> tuple[list[str], list[str]]:
    """(train, held-out): a seeded shuffle, 672 and 96."""
    prompts = all_prompts()
    order = np.random.default_rng([seed, 0]).permutation(len(prompts))
    shuffled = [prompts[index] for index in order]
    return shuffled[spec.NUM_HELDOUT_PROMPTS :], shuffled[: spec.NUM_HELDOUT_PROMPTS]


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """The 163 tokens: special ones first, then levels, then words in alphabetical order."""
    texts: Sequence[str] = [*sentences(), *all_prompts(), spec.SENTENCE_END]
    words = sorted({word for text in texts for word in text.split()}, key=lambda word: (not word.isalpha(), word))
    markers = [f"<{name}>" for name in spec.OBJECTIVES]
    return (spec.PAD, spec.EOS, spec.UNK, spec.HUMAN, spec.ASSISTANT, *markers, *spec.LEVELS, *words)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per space-separated word, nothing added; decoding gives the words joined by single spaces.

    A fast tokenizer that `AutoTokenizer` and vLLM load.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: index for index, word in enumerate(vocabulary())}
    words = Tokenizer(models.WordLevel(numbers, unk_token=spec.UNK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=spec.PAD,
        eos_token=spec.EOS,
        unk_token=spec.UNK,
        padding_side="right",
        model_max_length=spec.MAX_MODEL_LEN,
        clean_up_tokenization_spaces=False,  # would join "wire ." into "wire."
    )


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
    own_topic = topic_of(prompt)
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
        words += [realise(template, topic, dice.choice(variants(template))), spec.SENTENCE_END]
    return " ".join(words)


def _draw_template(dice: random.Random, templates: Sequence[str], used: set[str], redraws: int) -> str:
    template = dice.choice(templates)
    for _ in range(redraws):
        if template not in used:
            break
        template = dice.choice(templates)
    used.add(template)
    return template
