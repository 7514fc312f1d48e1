"""What a response gains over another: the losses that every method on pairs can use. Pure; shapes: B pairs.

With lr = log pi - log pi_ref of a response, g of a divergence (below) and d = g(lr_1) - g(lr_2), where response 1 wins:

    sigmoid   -log sigmoid(beta d)                                   DPO (arXiv 2305.18290), f-DPO (arXiv 2309.16240)
    ipo       (d - 1 / (2 beta))^2                                   IPO (arXiv 2310.12036), online 2403.08635
    bco       -log sigmoid(beta lr_1 - delta) - log sigmoid(delta - beta lr_2)          BCO (arXiv 2404.04656)

    reverse-kl   g(lr) = lr                        DPO's own
    js           g(lr) = log sigmoid(lr)           Jensen-Shannon
    forward-kl   g(lr) = -exp(-lr)
    alpha        g(lr) = -exp(-alpha lr) / alpha   between reverse (alpha to 0) and forward KL (alpha to 1)

g is f'(pi / pi_ref) up to a constant, which a difference does not see.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Kind = Literal["sigmoid", "ipo", "bco"]
Divergence = Literal["reverse-kl", "js", "forward-kl", "alpha"]
LARGEST_EXPONENT = 20.0
"""Nats below the reference beyond which the exponential of a divergence, and its gradient, grow no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """Example: PairLoss(kind="sigmoid", divergence="js")"""

    kind: Kind = "sigmoid"
    divergence: Divergence = "reverse-kl"
    alpha: float = 0.5
    """Of the divergence of that name, in (0, 1)."""


def link(logratio: Tensor, form: PairLoss) -> Tensor:
    """g of each log-ratio, any shape."""
    if form.divergence == "reverse-kl":
        return logratio
    if form.divergence == "js":
        return logsigmoid(logratio)
    alpha = 1.0 if form.divergence == "forward-kl" else form.alpha
    return -(-alpha * logratio).clamp(max=LARGEST_EXPONENT).exp() / alpha


def pair_loss(logratio: Tensor, weight: Tensor, *, beta: float, form: PairLoss) -> Tensor:
    """[B] weight_1 * (loss with response 1 as the winner) + weight_2 * (with response 2).

    Args:
        logratio: float [B, 2], lr of both responses in nats, with gradient.
        weight: float [B, 2], >= 0; both 0 where nobody wins.
        beta: strength of the anchor, > 0.
        form: which loss. The shift delta of `bco` is the mean of beta lr over the pairs that are passed together, held
            fixed; the paper's is a running mean over the training.
    """
    if form.kind == "bco":
        scaled_B2 = beta * logratio
        shifted_B2 = scaled_B2 - scaled_B2.detach().mean()
        wins_B2, loses_B2 = -logsigmoid(shifted_B2), -logsigmoid(-shifted_B2)
        both_B2 = wins_B2 + loses_B2.flip(-1)
        return (weight * both_B2).sum(-1)
    linked_B2 = link(logratio, form)
    difference_B = linked_B2[:, 0] - linked_B2[:, 1]
    signed_B2 = torch.stack([difference_B, -difference_B], -1)
    if form.kind == "ipo":
        return (weight * (signed_B2 - 1 / (2 * beta)) ** 2).sum(-1)
    return (weight * -logsigmoid(beta * signed_B2)).sum(-1)
