"""Tokens that mean numbers: a fit from random weights reads them far sooner when they start in order."""

from collections.abc import Sequence

import torch


@torch.no_grad()
def put_levels_on_a_line(
    embedding: torch.Tensor,
    token_ids: Sequence[int],
    *,
    center_std: float = 0.0,
    direction_std: float,
    noise_std: float,
    generator: torch.Generator,
) -> None:
    """Overwrite rows of an embedding [V, H]: the L levels, lowest first, lie evenly on one random line.

    e_i = c + noise_i + (2 i / (L - 1) - 1) v [H], with v ~ N(0, direction_std), noise_i ~ N(0, noise_std) and
    c ~ N(0, center_std), by which attention finds a level whatever its height.
    """
    width, last = embedding.shape[1], len(token_ids) - 1
    direction = torch.randn(width, generator=generator) * direction_std
    center = torch.randn(width, generator=generator) * center_std if center_std else torch.zeros(width)
    for index, token_id in enumerate(token_ids):
        noise = torch.randn(width, generator=generator) * noise_std
        embedding[token_id] = center + noise + (2 * index / last - 1) * direction
