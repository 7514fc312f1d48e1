"""Ragged token ids -> one right-padded block. Shapes: N sequences, T tokens of the longest, M response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBlock:
    """N (prompt, response) sequences, ready for one forward pass.

    Attention is causal and the padding stands on the right, so no real token ever sees padding: no mask is needed.

    Example:
        prompt (1, 4) and response (7, 2) alone: input_ids [[1, 4, 7]], positions [1, 2], targets [7, 2], rows [0, 0]
    """

    input_ids: Tensor
    """int64 [N, T]: prompt and response without its last token, which nothing is predicted from."""
    positions: Tensor
    """int64 [M]: index into the flattened [N * T] of the token that each response token is predicted from."""
    targets: Tensor
    """int64 [M]: the response tokens."""
    rows: Tensor
    """int64 [M]: the sequence each response token belongs to."""
    num_tokens: int
    """Prompt and response tokens, padding not counted."""

    def sum_by_sequence(self, per_token_M: Tensor) -> Tensor:
        """[N] sums over each sequence's response tokens."""
        return per_token_M.new_zeros(len(self.input_ids)).index_add(0, self.rows, per_token_M)


def pack_sequences(
    prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> SequenceBlock:
    """Lay out N sequences side by side; prompts and responses must not be empty.

    Raises:
        ValueError: an empty prompt or response, or unequal numbers of them.
    """
    if len(prompt_ids) != len(response_ids) or not prompt_ids:
        raise ValueError(f"one response per prompt, at least one, got {len(prompt_ids)} and {len(response_ids)}")
    lengths = [(len(prompt), len(response)) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    empty = next((row for row, pair in enumerate(lengths) if not all(pair)), None)
    if empty is not None:
        raise ValueError(f"sequence {empty}: prompt and response must not be empty, got lengths {lengths[empty]}")
    width = max(prompt + response for prompt, response in lengths) - 1
    padded = [
        [*prompt, *response[:-1], *([0] * (width + 1 - len(prompt) - len(response)))]
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]
    positions = [
        row * width + prompt - 1 + t for row, (prompt, response) in enumerate(lengths) for t in range(response)
    ]
    targets = [token for response in response_ids for token in response]
    rows = [row for row, (_, response) in enumerate(lengths) for _ in range(response)]
    return SequenceBlock(
        input_ids=torch.tensor(padded, device=device),
        positions=torch.tensor(positions, device=device),
        targets=torch.tensor(targets, device=device),
        rows=torch.tensor(rows, device=device),
        num_tokens=sum(map(sum, lengths)),
    )
