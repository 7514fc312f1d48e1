"""What a judge reads of a prompt and a response: the same when it is trained and when it scores."""

from collections.abc import Callable, Sequence
from typing import Any

from rewards.scorers import ScorerError
from rewards.tokens import SpecialTokens


class Reader:
    """Fills a judge's template and gives its token ids.

    Args:
        tokenizer: the judge's own.
        template: with ``{response}`` and perhaps ``{prompt}``, each at most once.
        max_length: longest input in tokens, special tokens included. What is longer loses the start of the prompt, so
            that the template and the response stay whole; where no prompt is left, the end of the response.
        pair: the tokenizer gets two texts, what stands before the response and the response, instead of one.
        where: names the judge in errors.

    Raises:
        ScorerError: the template leaves no token of ``max_length`` to a response.
    """

    def __init__(self, tokenizer: Any, template: str, *, max_length: int, pair: bool = False, where: str) -> None:
        self.max_length = max_length
        self._special = SpecialTokens(tokenizer)
        self._before, self._after = template.split("{response}")
        self._pair = pair
        around = len(self._encode("", ""))
        if around >= max_length:
            raise ScorerError(
                f"{where}: max_length must leave room for a response beside the template's {around} tokens, "
                f"got {max_length}"
            )

    def read(self, prompt: str, response: str) -> tuple[list[int], bool]:
        """(token ids, whether the input had to be shortened)."""
        token_ids = self._encode(prompt, response)
        if len(token_ids) <= self.max_length:
            return token_ids, False
        dropped = first_that(len(prompt), lambda start: self._fits(prompt[start:], response))
        if dropped is not None:
            return self._encode(prompt[dropped:], response), True
        dropped = first_that(len(response), lambda cut: self._fits("", response[: len(response) - cut]))
        assert dropped is not None  # an empty response fits
        return self._encode("", response[: len(response) - dropped]), True

    def _fits(self, prompt: str, response: str) -> bool:
        return len(self._encode(prompt, response)) <= self.max_length

    def _encode(self, prompt: str, response: str) -> list[int]:
        return self._special.without_bos(self._filled_ids, prompt, response)

    def _filled_ids(self, prompt: str, response: str) -> list[int]:
        # Filled in one after the other from the right piece, so that braces in a prompt or response are plain text.
        before, after = (part.replace("{prompt}", prompt) for part in (self._before, self._after))
        texts = (before, response) if self._pair else (before + response + after,)
        return self._special.closed_ids(*texts)


def tell_padding(model: Any, token_id: int) -> None:
    """Have a classifier of transformers know which id is padding; by it most find the last token of a row."""
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = token_id


def padding_id(token_id: int, rows: Sequence[Sequence[int]]) -> int:
    """An id to pad rows [N, T] with that none of them ends with: ``token_id`` unless one does, then another.

    transformers takes a row's score at its last token that is not the padding. Where that is the end token, as in
    tokenizers without a padding token, it would pass over the end token that closes a template.
    """
    last = {row[-1] for row in rows if row}
    # one of N + 1 ids ends none of N rows
    return next(candidate for candidate in (token_id, *range(len(last) + 1)) if candidate not in last)


def first_that(size: int, fits: Callable[[int], bool]) -> int | None:
    """Smallest number in 0..size that fits, by bisection; None when even ``size`` does not."""
    if not fits(size):
        return None
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high
