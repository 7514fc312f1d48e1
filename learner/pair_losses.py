"""What a response gains over another: the losses that every method on pairs can use. Pure; shapes: B pairs.

With lr = log pi - log pi_ref of a response, g of a divergence (below) and d = g(lr_1) - g(lr_2), where response 1 wins:

    sigmoid   -log sigmoid(beta d)                                   DPO (arXiv 2305.18290), f-DPO (arXiv 2309.16240)
    ipo       (d - 1 / (2 beta))^2                                   IPO (arXiv 2310.12036), online 2403.08635
    bco       -log sigmoid(beta lr_1) - log sigmoid(-beta lr_2)                          BCO (arXiv 2404.04656)

    reverse-kl   g(lr) = lr                        DPO's own
    js           g(lr) = log sigmoid(lr)           Jensen-Shannon
    forward-kl   g(lr) = 1 - exp(-lr)
    alpha        g(lr) = (1 - exp(-alpha lr)) / alpha   between reverse (alpha to 0) and forward KL (alpha to 1)

g is f'(pi / pi_ref) up to a constant, which a difference does not see. Far below the reference exponentials go on as
straight lines (`LARGEST_EXPONENT`). BCO shifts beta lr by a running mean, which begins at 0; here it stays there, as a
mean over what happens to pass together would make the loss depend on how examples are dealt to ranks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Kind = Literal["sigmoid", "ipo", "bco"]
Divergence = Literal["reverse-kl", "js", "forward-kl", "alpha"]
LARGEST_EXPONENT = 6.0
"""From which on an exponential goes on with its slope there: a single response must not be all of an update."""


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
    exponent = -alpha * logratio
    bounded = exponent.clamp(max=LARGEST_EXPONENT)
    beyond = (exponent - LARGEST_EXPONENT).clamp(min=0) * math.exp(LARGEST_EXPONENT)
    return -(bounded.expm1() + beyond) / alpha


def pair_loss(logratio: Tensor, weight: Tensor, *, beta: float, form: PairLoss) -> Tensor:
    """[B] weight_1 * (loss with response 1 as the winner) + weight_2 * (with response 2).

    Args:
        logratio: float [B, 2], lr of both responses in nats, with gradient.
        weight: float [B, 2], >= 0; both 0 where nobody wins.
        beta: strength of the anchor, > 0.
        form: which loss.
    """
    if form.kind == "bco":
        wins_B2, loses_B2 = -logsigmoid(beta * logratio), -logsigmoid(-beta * logratio)
        return (weight * (wins_B2 + loses_B2.flip(-1))).sum(-1)
    linked_B2 = link(logratio, form)
    difference_B = linked_B2[:, 0] - linked_B2[:, 1]
    signed_B2 = torch.stack([difference_B, -difference_B], -1)
    if form.kind == "ipo":
        return (weight * (signed_B2 - 1 / (2 * beta)) ** 2).sum(-1)
    return (weight * -logsigmoid(beta * signed_B2)).sum(-1)
