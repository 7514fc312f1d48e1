"""The losses on pairs by hand, the limits in which one is another, and what keeps them finite."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from learner_ranks import method
from test_methods import evaluated, group_of
from torch.nn.functional import logsigmoid

from learner.methods import make_method
from learner.pair_losses import PairLoss, link, pair_loss

FIRST_WINS = torch.tensor([[1.0, 0.0]])
RATIOS = torch.tensor([[2.0, -1.0]])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def loss(form: PairLoss, ratios=RATIOS, weight=FIRST_WINS, beta: float = 0.1) -> float:
    return float(pair_loss(ratios, weight, beta=beta, form=form))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (PairLoss(), -math.log(sigmoid(0.3))),
        (PairLoss(kind="ipo"), (3 - 5) ** 2),
        (PairLoss(kind="bco"), -math.log(sigmoid(0.2)) - math.log(sigmoid(0.1))),
        (PairLoss(divergence="js"), -math.log(sigmoid(0.1 * (math.log(sigmoid(2)) - math.log(sigmoid(-1)))))),
        (PairLoss(divergence="forward-kl"), -math.log(sigmoid(0.1 * (math.exp(1) - math.exp(-2))))),
        (PairLoss(divergence="alpha"), -math.log(sigmoid(0.1 * 2 * (math.exp(0.5) - math.exp(-1))))),
    ],
)
def test_one_pair_equals_the_value_computed_by_hand(form, expected):
    assert loss(form) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "bco"])
def test_weights_on_both_sides_add_the_losses_of_either_winner(kind):
    form = PairLoss(kind=kind)
    parts = [loss(form, weight=torch.tensor([weight])) for weight in ([1.0, 0.0], [0.0, 1.0])]
    assert loss(form, weight=torch.tensor([[0.7, 0.2]])) == pytest.approx(0.7 * parts[0] + 0.2 * parts[1], rel=1e-5)
    assert loss(form, weight=torch.zeros(1, 2)) == 0


def test_a_swapped_pair_is_the_same_pair():
    for kind in ("sigmoid", "ipo", "bco"):
        assert loss(PairLoss(kind=kind)) == pytest.approx(
            loss(PairLoss(kind=kind), RATIOS.flip(-1), FIRST_WINS.flip(-1))
        )


def test_alpha_lies_between_reverse_and_forward_kl():
    ratios = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        near = link(ratios.to(dtype), PairLoss(divergence="alpha", alpha=1e-7))
        torch.testing.assert_close(near.double(), ratios, atol=1e-5, rtol=0)
    almost = link(ratios, PairLoss(divergence="alpha", alpha=1 - 1e-9))
    torch.testing.assert_close(almost, link(ratios, PairLoss(divergence="forward-kl")))


@pytest.mark.parametrize(("divergence", "slope"), [("reverse-kl", 1), ("js", 0.5), ("forward-kl", 1), ("alpha", 1)])
def test_at_the_reference_all_divergences_move_alike_but_js_half_as_fast(divergence, slope):
    ratio = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    link(ratio, PairLoss(divergence=divergence)).sum().backward()
    assert ratio.grad is not None and float(ratio.grad) == slope


@pytest.mark.parametrize("divergence", ["reverse-kl", "js", "forward-kl", "alpha"])
def test_gradients_equal_finite_differences_and_stay_finite_far_away(divergence):
    form = PairLoss(divergence=divergence)
    near = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kind in ("sigmoid", "ipo"):
        of_kind = partial(pair_loss, beta=0.3, form=PairLoss(kind=kind, divergence=divergence))
        assert torch.autograd.gradcheck(of_kind, (near, weight))
    far = torch.tensor([[-50.0, 3.0], [1e4, -1e4]], requires_grad=True)
    value = pair_loss(far, torch.tensor([[1.0, 0.0], [0.5, 0.5]]), beta=1e-4, form=form)
    value.sum().backward()
    assert value.isfinite().all() and far.grad is not None and far.grad.isfinite().all()
    assert far.grad[0, 0] < 0 and far.grad.abs().max() < 1  # a winner far below still rises, and not out of bounds


def test_bco_moves_each_response_by_itself():
    ratios = torch.tensor([[1.0, -1.0], [3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    whole = pair_loss(ratios, weight, beta=0.5, form=PairLoss(kind="bco"))
    whole.sum().backward()
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    expected = -signs * 0.5 * torch.sigmoid(-signs * 0.5 * ratios.detach())
    torch.testing.assert_close(ratios.grad, expected)
    alone = [pair_loss(ratios[[i]], weight[[i]], beta=0.5, form=PairLoss(kind="bco")) for i in range(2)]
    torch.testing.assert_close(whole, torch.cat(alone))


@pytest.mark.parametrize("name", ["mo-odpo", "mi-epo", "raco", "mi-epo-scalarized"])
def test_every_method_on_pairs_takes_every_loss(name):
    group = group_of([[1, 0], [0, 1]], [0.3, 0.7])
    losses = []
    for settings in ({}, {"pair_loss": "ipo"}, {"pair_loss": "bco"}, {"divergence": "js"}, {"sft": 0.5}):
        made = make_method(method(name, **settings))
        losses.append(made.loss(evaluated(made.examples(group))).loss.item())
    assert len(set(np.round(losses, 6))) == 5


def test_the_supervised_term_is_the_winners_negative_log_probability_for_each_token():
    group = group_of([[1, 0], [0, 1]], [0.3, 0.7])
    outputs = []
    for sft in (0.0, 0.5):
        made = make_method(method("mo-odpo-per-objective", sft=sft))
        at = evaluated(made.examples(group))
        outputs.append(made.loss(at))
    tokens = at.logprob.detach().view(2, 2)  # two responses of two tokens
    expected = -0.5 * (0.3 * float(tokens[0].mean()) + 0.7 * float(tokens[1].mean()))
    assert float(outputs[1].metrics["loss_sft"]) == pytest.approx(expected, rel=1e-5)
    assert outputs[1].loss.item() - outputs[0].loss.item() == pytest.approx(expected, rel=1e-4)
    assert "loss_sft" not in outputs[0].metrics


def test_a_divergence_needs_a_loss_that_has_a_difference():
    with pytest.raises(ValueError, match="divergence must be reverse-kl with pair_loss bco, got js"):
        method("mo-odpo", pair_loss="bco", divergence="js")


def test_dpo_is_what_stands_without_a_choice():
    margin = 0.1 * (RATIOS[:, 0] - RATIOS[:, 1])
    assert loss(PairLoss()) == pytest.approx(float(-logsigmoid(margin)))
