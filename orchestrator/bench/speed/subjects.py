"""What is measured: policies of three sizes, judges, prompts.

The two smaller policies have random weights and know whole words only: prompts have just the length that was asked for,
and hardly an answer ends before its limit.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.bench.check.models import make_model
from orchestrator.estimate.shapes import Shape
from orchestrator.files import write_lines

OBJECTIVES = ("one", "two", "three", "four", "five")
SPECIAL = ("<pad>", "<eos>", "<unk>")
TENTHS = tuple(f"{tenths / 10:.1f}" for tenths in range(11))

SIZES = {
    "117k": Shape(
        architecture="llama",
        parameters=116_800,
        layers=2,
        hidden=64,
        intermediate=128,
        heads=2,
        kv_heads=2,
        head_dim=32,
        vocabulary=540,
    ),
    "17M": Shape(
        architecture="llama",
        parameters=19_276_416,
        layers=10,
        hidden=384,
        intermediate=1024,
        heads=6,
        kv_heads=6,
        head_dim=64,
        vocabulary=4096,
    ),
}
"""17.7 M of the second are its layers."""
SMOLLM2 = "135M"


def make_policy(size: str, folder: Path) -> Path:
    """FOLDER/<size>, made where it is not there yet.

    Raises:
        BadInput: the weights of SmolLM2 are nowhere.
    """
    path = folder / size
    if (path / "tokenizer.json").is_file():
        return path
    if size != SMOLLM2:
        return make_model(SIZES[size], path, device="cpu", tokenizer=word_tokenizer(SIZES[size].vocabulary))
    from orchestrator.tasks.smollm2.source import find_weights, hub_folder, package_folder, save_weights

    save_weights(find_weights(None, hub=hub_folder, package=package_folder), path)
    return path


def make_judges(count: int, folder: Path) -> list[Path]:
    """So small that they cost next to nothing: FOLDER/judge-<objective>, classifiers of one label."""
    shape = SIZES["117k"]
    tokenizer = word_tokenizer(shape.vocabulary)
    return [
        make_model(shape, folder / f"judge-{name}", device="cpu", tokenizer=tokenizer, labels=1, seed=seed)
        for seed, name in enumerate(OBJECTIVES[:count])
    ]


def word_tokenizer(words: int) -> Any:
    """A token for each of so many words; objectives and tenths are among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = (*SPECIAL, *OBJECTIVES, *TENTHS)
    vocabulary = {word: index for index, word in enumerate((*known, *_plain_words(words - len(known))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk)


def write_prompts(path: Path, *, count: int, tokens: int, size: str, seed: int = 0) -> Path:
    """JSONL of `count` different prompts, each between three quarters and the whole of so many tokens."""
    rng = random.Random(seed)
    # SmolLM2 has a token for each of these with the space before it.
    words: Sequence[str] = PLAIN_ENGLISH if size == SMOLLM2 else _plain_words(256)
    lengths = [rng.randint(3 * tokens // 4, tokens) for _ in range(count)]
    write_lines(path, ({"prompt": " ".join(rng.choices(words, k=length))} for length in lengths))
    return path


PLAIN_ENGLISH = (
    *("the", "people", "water", "house", "time", "world", "under", "small", "great", "over", "light", "first"),
    *("never", "after", "between", "school", "every", "country", "night", "story", "young", "often", "family", "music"),
)


def _plain_words(count: int) -> list[str]:
    return [f"w{index}" for index in range(count)]
