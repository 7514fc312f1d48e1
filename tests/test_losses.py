"""The MI-EPO loss against hand-computed values, finite differences and the identities it must obey."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.losses import mi_epo_loss
from learner.pairs import pair_weights

BETA_C, BETA_W = 0.3, 0.03


def random_inputs(num_pairs: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float64 (lr w+ [B, 2], lr w- [1, B, 2], a1 [B], a2 [B])."""
    rng = torch.Generator().manual_seed(seed)
    positive, negative = 5 * torch.randn(2, num_pairs, 2, generator=rng, dtype=torch.float64)
    share = torch.rand(num_pairs, generator=rng, dtype=torch.float64)
    return positive, negative[None], 0.9 * share, 0.9 * (1 - share)


def test_one_pair_equals_the_value_computed_by_hand() -> None:
    output = mi_epo_loss(
        torch.tensor([[2.0, -1.0]]),
        torch.tensor([[[1.0, 0.0]]]),
        torch.tensor([0.7]),
        torch.tensor([0.2]),
        beta_c=0.1,
        beta_w=0.5,
    )
    # d = 3, beta_c d = 0.3; L_YW margins: 0.5 * (2 - 1) = 0.5 and 0.5 * (-1 - 0) = -0.5
    alignment = 0.7 * math.log1p(math.exp(-0.3)) + 0.2 * math.log1p(math.exp(0.3))
    identifiability = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5))) / 2
    assert float(output.loss) == pytest.approx(alignment + identifiability, abs=1e-6)
    metrics = {name: float(value) for name, value in output.metrics.items()}
    assert metrics == pytest.approx(
        {
            "loss": alignment + identifiability,
            "loss_alignment": alignment,
            "loss_identifiability": identifiability,
            "logratio_mean": 0.5,
            "logratio_negative_mean": 0.5,
            "margin_mean": 0.3,
            "identification_accuracy": 0.5,
        },
        abs=1e-6,
    )


def test_loss_is_the_mean_over_pairs() -> None:
    positive, negative, *weights = random_inputs()
    whole = mi_epo_loss(positive, negative, *weights, beta_c=BETA_C, beta_w=BETA_W)
    parts = [
        mi_epo_loss(
            positive[i : i + 1],
            negative[:, i : i + 1],
            *(weight[i : i + 1] for weight in weights),
            beta_c=BETA_C,
            beta_w=BETA_W,
        )
        for i in range(6)
    ]
    assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts) / 6, abs=1e-12)
    for name, value in whole.metrics.items():
        assert float(value) == pytest.approx(sum(float(part.metrics[name]) for part in parts) / 6, abs=1e-12)


def test_gradient_equals_finite_differences_with_the_anchor_held_fixed() -> None:
    positive, negative, weight_y1, weight_y2 = random_inputs()

    def loss_with_fixed_anchor(moving_positive: Tensor, moving_negative: Tensor) -> Tensor:
        """The loss written out anew, the stop-gradient as a constant."""
        margin = BETA_C * (moving_positive[:, 0] - moving_positive[:, 1])
        alignment = -weight_y1 * logsigmoid(margin) - weight_y2 * logsigmoid(-margin)
        identifiability = -logsigmoid(BETA_W * positive - BETA_W * moving_negative).sum(-1) / 2
        return (alignment + identifiability).mean()

    inputs = (positive.clone().requires_grad_(), negative.clone().requires_grad_())
    points = (positive, negative)
    mi_epo_loss(*inputs, weight_y1, weight_y2, beta_c=BETA_C, beta_w=BETA_W).loss.backward()
    for which, tensor in enumerate(inputs):
        assert tensor.grad is not None
        for index in torch.cartesian_prod(torch.arange(6), torch.arange(2)):
            step = torch.zeros(6, 2, dtype=torch.float64)
            step[tuple(index)] = 1e-5
            at = (..., *index)
            values = [
                loss_with_fixed_anchor(*[value + sign * step * (which == i) for i, value in enumerate(points)])
                for sign in (1, -1)
            ]
            numeric = float(values[0] - values[1]) / 2e-5
            assert float(tensor.grad[at]) == pytest.approx(numeric, abs=1e-8)


def test_per_objective_sum_of_dpo_losses_equals_the_soft_label_form() -> None:
    rng = torch.Generator().manual_seed(1)
    num_pairs, num_objectives = 50, 4
    scores = torch.randint(0, 3, (num_pairs, 2, num_objectives), generator=rng).double()  # with ties
    preference = torch.rand(num_pairs, num_objectives, generator=rng, dtype=torch.float64)
    preference /= preference.sum(-1, keepdim=True)
    logratio = torch.randn(num_pairs, 2, generator=rng, dtype=torch.float64)
    margin = BETA_C * (logratio[:, 0] - logratio[:, 1])
    per_objective = torch.zeros(num_pairs, dtype=torch.float64)
    for k in range(num_objectives):
        difference = scores[:, 0, k] - scores[:, 1, k]
        dpo = -logsigmoid(margin * difference.sign())
        per_objective += torch.where(difference == 0, 0.0, preference[:, k] * dpo)
    output = mi_epo_loss(logratio, None, *pair_weights(scores, preference), beta_c=BETA_C, beta_w=0)
    assert float(output.loss) == pytest.approx(float(per_objective.mean()), abs=1e-12)


def test_no_gradient_flows_through_the_anchor() -> None:
    positive, negative, *_ = random_inputs()
    positive.requires_grad_()
    nothing = torch.zeros(6, dtype=torch.float64)
    mi_epo_loss(positive, negative, nothing, nothing, beta_c=BETA_C, beta_w=BETA_W).loss.backward()
    assert positive.grad is not None and torch.equal(positive.grad, torch.zeros_like(positive))


def test_identifiability_gradient_lowers_the_response_under_the_other_preference() -> None:
    positive, negative, weight_y1, weight_y2 = random_inputs()
    negative.requires_grad_()
    mi_epo_loss(positive, negative, weight_y1, weight_y2, beta_c=BETA_C, beta_w=BETA_W).loss.backward()
    margin = BETA_W * (positive - negative.detach())
    expected = (1 - torch.sigmoid(margin)) * BETA_W / 2 / 6
    assert expected.shape == (1, 6, 2)
    assert negative.grad is not None
    torch.testing.assert_close(negative.grad, expected)
    assert (negative.grad > 0).all()


def test_equal_preferences_cost_log_two_per_pair() -> None:
    positive, _, weight_y1, weight_y2 = random_inputs()
    output = mi_epo_loss(positive, positive[None].clone(), weight_y1, weight_y2, beta_c=BETA_C, beta_w=BETA_W)
    assert float(output.metrics["loss_identifiability"]) == pytest.approx(math.log(2), abs=1e-12)
    assert float(output.metrics["identification_accuracy"]) == 0


def test_without_beta_w_the_other_preference_is_not_needed_and_adds_nothing() -> None:
    positive, negative, weight_y1, weight_y2 = random_inputs()
    alone = mi_epo_loss(positive, None, weight_y1, weight_y2, beta_c=BETA_C, beta_w=0)
    given = mi_epo_loss(positive, negative, weight_y1, weight_y2, beta_c=BETA_C, beta_w=0)
    assert torch.equal(alone.loss, given.loss)
    assert torch.equal(alone.loss, alone.metrics["loss_alignment"])
    assert float(alone.metrics["loss_identifiability"]) == 0
    assert "identification_accuracy" not in alone.metrics and "identification_accuracy" in given.metrics


def test_one_hot_preference_is_plain_dpo_on_that_objective() -> None:
    scores = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]]).double()
    logratio = torch.tensor([[0.4, -0.2]]).double()
    for k, winner, loser in ((0, 0, 1), (1, 1, 0)):
        preference = torch.eye(2, dtype=torch.float64)[k : k + 1]
        output = mi_epo_loss(logratio, None, *pair_weights(scores, preference), beta_c=BETA_C, beta_w=0)
        dpo = -logsigmoid(BETA_C * (logratio[0, winner] - logratio[0, loser]))
        assert float(output.loss) == pytest.approx(float(dpo), abs=1e-12)


def test_a_pair_tied_on_every_objective_gives_no_alignment_gradient() -> None:
    positive = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    weights = pair_weights(torch.ones(1, 2, 3).double(), torch.full((1, 3), 1 / 3).double())
    output = mi_epo_loss(positive, None, *weights, beta_c=BETA_C, beta_w=0)
    output.loss.backward()
    assert output.loss.item() == 0
    assert positive.grad is not None and torch.equal(positive.grad, torch.zeros_like(positive))


def test_huge_log_ratios_stay_finite() -> None:
    positive = torch.tensor([[1e4, -1e4]], requires_grad=True)
    half = torch.tensor([0.5])
    output = mi_epo_loss(positive, -positive[None], half, half, beta_c=1.0, beta_w=1.0)
    output.loss.backward()
    assert positive.grad is not None and positive.grad.isfinite().all() and output.loss.isfinite()


def test_several_other_preferences_make_the_cross_entropy_of_naming_the_right_one() -> None:
    positive, _, weight_y1, weight_y2 = random_inputs()
    negative = 5 * torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    output = mi_epo_loss(positive, negative, weight_y1, weight_y2, beta_c=BETA_C, beta_w=BETA_W)
    candidates = BETA_W * torch.cat([positive[None], negative]).reshape(5, 12).T  # [12 responses, 1 + M]
    expected = torch.nn.functional.cross_entropy(candidates, torch.zeros(12, dtype=torch.int64))
    assert float(output.metrics["loss_identifiability"]) == pytest.approx(float(expected), abs=1e-12)
    at_start = mi_epo_loss(0 * positive, 0 * negative, weight_y1, weight_y2, beta_c=BETA_C, beta_w=BETA_W)
    assert float(at_start.metrics["loss_identifiability"]) == pytest.approx(math.log(5), abs=1e-12)


def test_a_prompt_with_two_pairs_counts_once() -> None:
    positive, negative, weight_y1, weight_y2 = random_inputs(3)
    share = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    output = mi_epo_loss(positive, negative, weight_y1, weight_y2, beta_c=BETA_C, beta_w=BETA_W, prompt_share=share)
    single = [
        mi_epo_loss(
            positive[[i]], negative[:, [i]], weight_y1[[i]], weight_y2[[i]], beta_c=BETA_C, beta_w=BETA_W
        ).metrics
        for i in range(3)
    ]
    alignment = sum(float(metrics["loss_alignment"]) for metrics in single) / 2
    information = [float(metrics["loss_identifiability"]) for metrics in single]
    identifiability = ((information[0] + information[1]) / 2 + information[2]) / 2
    assert float(output.loss) == pytest.approx(alignment + identifiability, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_c": 0.0}, "beta_c must be > 0, got 0"),
        ({"beta_w": -0.1}, "beta_w must be >= 0, got -0.1"),
        ({"logratio_w_neg": None}, "logratio_w_neg is required"),
        ({"logratio_w_neg": torch.zeros(6, 2)}, r"logratio_w_neg must be \[M, 6, 2\] with M >= 1, got \[6, 2\]"),
        ({"logratio_w_neg": torch.zeros(0, 6, 2)}, r"must be \[M, 6, 2\] with M >= 1, got \[0, 6, 2\]"),
        ({"logratio_w_pos": torch.zeros(0, 2)}, r"\[B, 2\] with B >= 1, got \[0, 2\]"),
        ({"weight_y2": torch.zeros(6, 1)}, r"weight_y2 must be \[B\] = \[6\], got \[6, 1\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    names = ("logratio_w_pos", "logratio_w_neg", "weight_y1", "weight_y2")
    arguments = dict(zip(names, random_inputs(), strict=True)) | {"beta_c": BETA_C, "beta_w": BETA_W} | change
    with pytest.raises(ValueError, match=message):
        mi_epo_loss(**arguments)  # type: ignore[arg-type]


def test_without_the_stop_gradient_the_information_term_also_pulls_on_w_plus() -> None:
    positive, negative, _, _ = random_inputs()
    positive.requires_grad_()
    nothing = torch.zeros(len(positive), dtype=torch.float64)

    def information(value: Tensor, *, stop_gradient: bool) -> Tensor:
        output = mi_epo_loss(
            value, negative, nothing, nothing, beta_c=BETA_C, beta_w=BETA_W, stop_gradient=stop_gradient
        )
        return output.loss

    held, free = (information(positive, stop_gradient=stop) for stop in (True, False))
    assert torch.equal(held, free)
    assert torch.autograd.grad(held, positive)[0].count_nonzero() == 0
    (gradient,) = torch.autograd.grad(free, positive)
    margin = BETA_W * (positive - negative[0])
    torch.testing.assert_close(gradient, -BETA_W * torch.sigmoid(-margin) / 2 / len(positive))
