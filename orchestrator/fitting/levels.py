"""Tokens that mean numbers: a fit from random weights reads them far sooner when they start in order."""

from collections.abc import Sequence

import torch


@torch.no_grad()
def put_levels_on_a_line(
    embedding: torch.Tensor,
    token_ids: Sequence[int],
    *,
    direction_std: float,
    noise_std: float,
    generator: torch.Generator,
) -> None:
    """Overwrite rows of an embedding [V, H]: the L levels, lowest first, lie evenly from -v to v on one random v [H].

    e_i = noise_i + (2 i / (L - 1) - 1) v, with v ~ N(0, direction_std) and noise_i ~ N(0, noise_std).
    """
    width, last = embedding.shape[1], len(token_ids) - 1
    direction = torch.randn(width, generator=generator) * direction_std
    for index, token_id in enumerate(token_ids):
        noise = torch.randn(width, generator=generator) * noise_std
        embedding[token_id] = noise + (2 * index / last - 1) * direction
