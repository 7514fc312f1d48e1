"""Texts to token ids where a text, its template and the tokenizer may each write special tokens: each stands once.

Importing this module needs nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

PROBE = "a"


class SpecialTokens:
    """What a tokenizer puts around every text by itself, and its beginning token wherever that comes from.

    Args:
        tokenizer: of transformers, or what can be called like one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bos: str | None = getattr(tokenizer, "bos_token", None)
        self._bos_id: int | None = getattr(tokenizer, "bos_token_id", None)
        self._eos_id: int | None = getattr(tokenizer, "eos_token_id", None)
        bare, whole = self._encode(PROBE, add_special_tokens=False), self._encode(PROBE)
        starts = range(len(whole) - len(bare) + 1)
        start = next((index for index in starts if whole[index : index + len(bare)] == bare), 0)
        self.before, self.after = whole[:start], whole[start + len(bare) :]

    def open_ids(self, text: str, *, templated: bool = False) -> list[int]:
        """Of a text that an answer is to follow: begun once, with nothing at its end that the text does not have.

        Args:
            templated: a chat template wrote the text, its special tokens included.
        """
        return self._opened(self._encode(text, add_special_tokens=not templated), templated=templated)

    def open_ids_of_each(self, texts: Sequence[str], *, templated: bool = False) -> list[list[int]]:
        """`open_ids` of many texts, which the tokenizer reads together."""
        many = self._tokenizer(list(texts), add_special_tokens=not templated)["input_ids"] if texts else []
        return [self._opened(list(ids), templated=templated) for ids in many]

    def closed_ids(self, *texts: str) -> list[int]:
        """Of a whole text, or of a pair of texts: begun once and ended once."""
        ids = self._begun_once(self._encode(*texts))
        return _once(ids[::-1], self.after[::-1] or _known(self._eos_id))[::-1]

    def response_ids(self, text: str) -> list[int]:
        """Of what a policy answers, ended once; no token of an empty text is more than that end."""
        ids = self._encode(text, add_special_tokens=False)
        while ids and ids[0] == self._bos_id:
            ids = ids[1:]
        return _once([*_known(self._eos_id), *ids[::-1]], _known(self._eos_id))[::-1]

    def is_begun(self, text: str) -> bool:
        """Whether a beginning stands in a text itself."""
        return bool(self._bos and self._bos in text)

    def without_bos(self, encode: Callable[..., list[int]], *texts: str) -> list[int]:
        """``encode(*texts)``, where a beginning that stands in the texts themselves counts only if it is the only one.

        Data that was written for a tokenizer often begins with its BOS, which would then stand amid the template.
        """
        if any(map(self.is_begun, texts)):
            ids = encode(*(text.replace(str(self._bos), "") for text in texts))
            if self._bos_id in ids:
                return ids
        return encode(*texts)

    def _opened(self, ids: list[int], *, templated: bool) -> list[int]:
        return self._begun_once(ids if templated else ids[: len(ids) - len(self.after)])

    def _begun_once(self, ids: list[int]) -> list[int]:
        return _once(ids, self.before or _known(self._bos_id))

    def _encode(self, *texts: str, **options: bool) -> list[int]:
        return list(self._tokenizer(*texts, **options)["input_ids"])


def _known(token_id: int | None) -> list[int]:
    return [] if token_id is None else [token_id]


def _once(ids: list[int], first: list[int]) -> list[int]:
    """``ids`` with one ``first`` where several stand in a row at the start."""
    size = len(first)
    while size and ids[: 2 * size] == first * 2:
        ids = ids[size:]
    return ids
