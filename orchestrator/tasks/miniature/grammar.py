"""The language of the miniature: prompts, sentences, the words they are made of, and the tokenizer of these words."""

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.tasks.miniature import spec
from orchestrator.tasks.miniature.spec import Topic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
