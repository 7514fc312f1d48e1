"""Token ids that a model has no row for: tokens added to its tokenizer while its embedding stayed as it was."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rewards.model_files import ModelError, read_json, refuse_pointer

INSERTED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")
"""Special tokens that a tokenizer or a batch puts in by itself; others are met only where a text holds them."""
TOKENIZER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def check_vocabulary(folder: Path, rows: int | None, texts: Collection[str] = ()) -> None:
    """Compare the tokens of a folder's tokenizer with the rows of the model's embedding.

    A special token without a row is let pass where nothing ever inserts it: some models share the tokenizer of a larger
    one that reads images too.

    Args:
        rows: token ids are below this; None: not known.
        texts: what is read besides data, such as a template.

    Raises:
        ModelError: a token without a row that is an ordinary one, is inserted, or stands in one of the texts; a broken
            tokenizer file.
    """
    for name in TOKENIZER_FILES:
        refuse_pointer(folder / name)
    settings = _read(folder / "tokenizer_config.json")
    check_length(settings.get("model_max_length"), folder)
    inserted = {_content(settings.get(name)) for name in INSERTED}
    for content, (token_id, special) in _tokens(folder, settings).items():
        used = not special or content in inserted or any(content in text for text in texts)
        if rows is not None and token_id >= rows and used:
            raise ModelError(f"{folder}: {without_row(content, token_id, rows)}")


def check_inserted(tokenizer: Any, rows: int | None, where: str) -> None:
    """The same of a loaded tokenizer, which itself gives an id to a special token that no list of tokens has.

    Raises:
        ModelError: a special token that is inserted has no row.
    """
    for name in INSERTED:
        token = getattr(tokenizer, name, None)
        if rows is not None and token is not None and (token_id := tokenizer.convert_tokens_to_ids(token)) >= rows:
            raise ModelError(f"{where}: {without_row(token, token_id, rows)}")


def check_token_ids(folder: Path, token_ids: Mapping[str, int | list[int]], rows: int | None) -> None:
    """Raises ModelError: an id that the folder's configurations name is no row of the embedding."""
    for name, value in token_ids.items():
        beyond = None if rows is None else first_without_row(value if isinstance(value, list) else [value], rows)
        if beyond is not None:
            raise ModelError(f"{folder}: {name} must be below {rows}, the rows of the embedding, got {beyond}")


def check_padding(folder: Path, config: Mapping[str, Any], rows: int | None) -> None:
    """Raises ModelError: the padding of config.json is no row of the embedding that is told of it."""
    pad = config.get("pad_token_id")
    if isinstance(pad, int) and pad >= 0 and config.get("model_type") != "gpt2":  # whose embedding is not
        check_token_ids(folder, {"pad_token_id": pad}, rows)


def check_length(longest: object, model: object) -> None:
    """Raises ModelError: the longest input that a tokenizer's settings name is no number."""
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float)):
        raise ModelError(f"{model}: model_max_length of the tokenizer must be a number, got {longest!r:.80}")


def first_without_row(token_ids: Iterable[int], rows: int) -> int | None:
    """The first id that is no row of an embedding of so many."""
    return next((token_id for token_id in token_ids if not 0 <= token_id < rows), None)


def without_row(token: str, token_id: int, rows: int) -> str:
    """The rule that such a token breaks, for a message."""
    return f"must have an embedding for every token (it has {rows} rows), got {token!r:.60} with id {token_id}"


def _tokens(folder: Path, settings: dict[str, Any]) -> dict[str, tuple[int, bool]]:
    """Content -> (id, whether special), by every file that may say so; the later ones know best."""
    tokenizer = _read(folder / "tokenizer.json")
    try:
        words = tokenizer.get("model", {}).get("vocab") or {}  # of one kind of model a list of texts and scores
        numbered = words.items() if isinstance(words, dict) else ((word[0], i) for i, word in enumerate(words))
        found = {word: (int(number), False) for word, number in numbered}
        found |= {word: (int(number), False) for word, number in _read(folder / "added_tokens.json").items()}
        entries = [*(tokenizer.get("added_tokens") or ())]
        entries += [entry | {"id": key} for key, entry in (settings.get("added_tokens_decoder") or {}).items()]
        return found | {entry["content"]: (int(entry["id"]), bool(entry.get("special"))) for entry in entries}
    except ModelError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ModelError(f"{folder}: must list the tokens of its tokenizer by id and content") from None


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token
