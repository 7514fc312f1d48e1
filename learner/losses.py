"""The MI-EPO loss (arXiv 2607.01392), pure: tensors in, (loss, metrics) out. Shapes: B pairs, 2 responses each.

    L_YC = -a1 log sigmoid(beta_c d) - a2 log sigmoid(-beta_c d),   d = lr(y1|w+) - lr(y2|w+)
    L_YW = 1/2 sum_j -log sigmoid( sg[beta_w lr(y_j|w+)] - log sum_m exp(beta_w lr(y_j|w-_m)) )
    L    = mean over prompts of L_YC + L_YW

with lr(y|w) = sum over response tokens of log pi_theta - log pi_ref given G(x, w), and sg = stop-gradient.
The paper has one w- (M = 1). With M of them L_YW is InfoNCE (arXiv 1807.03748): -log of the softmax of w+ among 1 + M.
L_YC equals the per-objective sum of w+_k DPO losses; with beta_w = 0 what remains is per-objective MO-ODPO.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.pair_losses import PairLoss, pair_loss

DPO = PairLoss()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """Example: LossOutput(loss=tensor(0.83), metrics={"loss_alignment": tensor(0.69), ...})"""

    loss: Tensor
    """Scalar, with gradient."""
    metrics: dict[str, Tensor]
    """Detached scalars, each a mean over prompts."""

    def with_term(self, name: str, term: Tensor) -> "LossOutput":
        """The loss with one more term, which is told under its name."""
        loss = self.loss + term
        return LossOutput(loss=loss, metrics={**self.metrics, name: term.detach(), "loss": loss.detach()})


def mi_epo_loss(
    logratio_w_pos: Tensor,
    logratio_w_neg: Tensor | None,
    weight_y1: Tensor,
    weight_y2: Tensor,
    *,
    beta_c: float,
    beta_w: float,
    stop_gradient: bool = True,
    prompt_share: Tensor | None = None,
    form: PairLoss = DPO,
) -> LossOutput:
    """Alignment plus identifiability loss of a batch of pairs.

    Args:
        logratio_w_pos: float [B, 2], lr(y_j | w+) in nats, with gradient.
        logratio_w_neg: float [M, B, 2], lr(y_j | w-_m), with gradient. May be None when beta_w = 0.
        weight_y1, weight_y2: float [B], a1 and a2 of `learner.pairs.pair_weights`.
        beta_c: strength of the implicit KL in L_YC, > 0.
        beta_w: the same in L_YW, >= 0; 0 drops the term.
        stop_gradient: hold lr(y|w+) fixed in L_YW, as the paper does; False lets the term raise it too.
        prompt_share: float [B], 1 / (pairs of the pair's prompt); None: one pair for each prompt. A prompt's L_YC sums
            over its pairs, everything else averages over them.
        form: what stands in the place of DPO's loss in L_YC.

    Returns:
        loss: scalar mean over prompts.
        metrics: `loss`, `loss_alignment` (L_YC), `loss_identifiability` (L_YW), `logratio_mean` (lr under w+, per
            response), `margin_mean` (beta_c d signed towards the response with more weight, per pair), and, when
            `logratio_w_neg` is given, `logratio_negative_mean` and `identification_accuracy` (share of responses and
            w- with lr(y|w+) > lr(y|w-)).

    Raises:
        ValueError: shapes do not fit, B = 0, a beta is out of range, or L_YW is on without `logratio_w_neg`.
    """
    _check(logratio_w_pos, logratio_w_neg, weight_y1, weight_y2, beta_c, beta_w)
    share_B = torch.ones_like(weight_y1) if prompt_share is None else prompt_share
    num_prompts = share_B.sum()

    def mean(per_pair_B: Tensor) -> Tensor:
        return (per_pair_B * share_B).sum() / num_prompts

    margin_B = beta_c * (logratio_w_pos[:, 0] - logratio_w_pos[:, 1])
    alignment_B = pair_loss(logratio_w_pos, torch.stack([weight_y1, weight_y2], -1), beta=beta_c, form=form)
    loss = alignment = alignment_B.sum() / num_prompts
    metrics = {
        "loss_alignment": alignment,
        "logratio_mean": mean(logratio_w_pos.mean(-1)),
        "margin_mean": mean(margin_B * (weight_y1 - weight_y2).sign()),
    }
    if beta_w and logratio_w_neg is not None:
        anchor_B2 = beta_w * (logratio_w_pos.detach() if stop_gradient else logratio_w_pos)
        identifiability_B2 = -logsigmoid(anchor_B2 - (beta_w * logratio_w_neg).logsumexp(0))
        metrics["loss_identifiability"] = mean(identifiability_B2.sum(-1)) / 2
        loss = alignment + metrics["loss_identifiability"]
    else:
        metrics["loss_identifiability"] = alignment.new_zeros(())
    if logratio_w_neg is not None:
        metrics["logratio_negative_mean"] = mean(logratio_w_neg.mean((0, 2)))
        metrics["identification_accuracy"] = mean((logratio_w_pos > logratio_w_neg).to(alignment.dtype).mean((0, 2)))
    metrics["loss"] = loss
    return LossOutput(loss=loss, metrics={name: value.detach() for name, value in metrics.items()})


def supervised_loss(logprob: Tensor, num_tokens: Tensor) -> LossOutput:
    """Negative log-likelihood of responses, per token: mean over responses of -log pi(y) / |y|.

    Args:
        logprob: float [S], summed log-probability of each response, with gradient; S >= 1.
        num_tokens: float or int [S], its length.

    Returns:
        loss: scalar; metrics: `loss` and `logprob_mean` (per response, nats).
    """
    if logprob.shape != num_tokens.shape or not logprob.numel():
        raise ValueError(f"logprob {list(logprob.shape)} and num_tokens {list(num_tokens.shape)} must agree, S >= 1")
    loss = -(logprob / num_tokens).mean()
    return LossOutput(loss=loss, metrics={"loss": loss.detach(), "logprob_mean": logprob.detach().mean()})


def _check(
    logratio_w_pos: Tensor,
    logratio_w_neg: Tensor | None,
    weight_y1: Tensor,
    weight_y2: Tensor,
    beta_c: float,
    beta_w: float,
) -> None:
    if not beta_c > 0:
        raise ValueError(f"beta_c must be > 0, got {beta_c}")
    if not beta_w >= 0:
        raise ValueError(f"beta_w must be >= 0, got {beta_w}")
    if logratio_w_pos.ndim != 2 or logratio_w_pos.shape[1] != 2 or not len(logratio_w_pos):
        raise ValueError(f"logratio_w_pos must be [B, 2] with B >= 1, got {list(logratio_w_pos.shape)}")
    if logratio_w_neg is None:
        if beta_w:
            raise ValueError(f"logratio_w_neg is required when beta_w > 0, got None with beta_w = {beta_w}")
    elif logratio_w_neg.shape[1:] != logratio_w_pos.shape or not len(logratio_w_neg):
        shape = ", ".join(map(str, logratio_w_pos.shape))
        raise ValueError(f"logratio_w_neg must be [M, {shape}] with M >= 1, got {list(logratio_w_neg.shape)}")
    for name, weight in (("weight_y1", weight_y1), ("weight_y2", weight_y2)):
        if weight.shape != logratio_w_pos.shape[:1]:
            raise ValueError(f"{name} must be [B] = {list(logratio_w_pos.shape[:1])}, got {list(weight.shape)}")
