"""The methods: labels by hand, losses by hand, and the identities that tie them together."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from learner_ranks import method, pair_example

from learner.examples import Example, Group
from learner.methods import METHODS, Combines, Work, adopt, make_method
from learner.methods.grpo import Grpo, grpo_loss
from learner.methods.mo_odpo import PairMethod, PairTargets
from learner.methods.raco import conflict_averse, worst_mixture
from learner.sequences import Evaluated, pack_examples

WORK = Work(num_objectives=2, num_responses=2, steps=10, zero_stage=0, fixed=False)
PAIR_METHODS = [
    name
    for name, each in METHODS.items()
    if issubclass(each, PairMethod) and name not in ("cpo", "reward-consistency")  # which ask otherwise, and may pass
]


def group_of(scores: Any, preference: Any, seed: int = 0, progress: float = 0.0) -> Group:
    count = len(scores)
    return Group(
        preference=np.array(preference, dtype=float),
        scores=np.array(scores, dtype=float),
        prompts=((20, 21), (20, 22)),
        responses=tuple((30 + j, 1) for j in range(count)),
        logprobs=tuple((-1.0, -2.0) for _ in range(count)),
        asking=lambda levels: (40, *(int(10 * level) for level in levels)),
        seed=seed,
        progress=progress,
    )


def label(name: str, scores: Any, preference: Any, seed: int = 0, **settings: Any) -> PairTargets:
    targets = make_method(method(name, **settings)).label(group_of(scores, preference, seed))
    assert isinstance(targets, PairTargets)
    return targets


def evaluated(examples: list[Example], generator_seed: int = 0) -> Evaluated:
    block = pack_examples(examples, shared=False)
    generator = torch.Generator().manual_seed(generator_seed)
    logprob = (-torch.rand(len(block.targets), generator=generator)).requires_grad_()
    return Evaluated(examples=examples, block=block, logprob=logprob, reference=-torch.ones(len(block.targets)))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_called_what_the_list_calls_it_and_serves_an_ordinary_recipe(name: str) -> None:
    made = make_method(method(name))
    assert made.config.type == name
    assert list(made.problems(WORK)) == []
    section, _, key = made.tuned_by.partition(".")
    assert key and (section == "learner" or key in type(made.config).model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_too_few_responses_are_named(name: str) -> None:
    made = make_method(method(name))
    found = list(made.problems(dataclasses.replace(WORK, num_responses=made.min_responses - 1)))
    assert found == [f"loop.responses_per_prompt must be at least {made.min_responses}, got {made.min_responses - 1}"]


def test_settings_that_two_methods_share_move_from_one_to_the_other() -> None:
    settings = {"type": "mi-epo", "beta_c": 0.3, "beta_w": 0.02, "routing": "sampled"}
    assert adopt("mo-odpo", settings) == {"type": "mo-odpo", "beta_c": 0.3}
    assert adopt("ric", settings | {"scores": "standard"}) == {"type": "ric"}  # which sees quantiles
    assert adopt("mo-odpo", {"type": "oops", "beta_c": 0.3, "beta_w": 0.02}) == {"type": "mo-odpo", "beta_c": 0.3}


def test_each_objective_pairs_its_best_response_with_its_worst() -> None:
    cases = [
        ([[3, 0, 1], [1, 5, 1], [2, 2, 1]], [0.2, 0.3, 0.5], (0, 1), (0.2, 0.3)),  # 0 over 1, 1 over 0, tie
        ([[0, 0, 9], [1, 1, 5], [2, 2, 0]], [0.2, 0.3, 0.5], (0, 2), (0.5, 0.5)),  # 2 over 0, 2 over 0, 0 over 2
        ([[0, 2, 4], [1, 1, 5], [2, 0, 6]], [0.0, 0.4, 0.6], (0, 2), (0.4, 0.6)),  # weight 0, 0 over 2, 2 over 0
        ([[7, 7, 7]] * 3, [0.2, 0.3, 0.5], (0, 1), (0.0, 0.0)),
    ]
    for scores, preference, pair, weights in cases:
        targets = label("mi-epo", scores, preference)
        assert targets.responses == (pair,)
        assert targets.weight.sum(axis=(0, 1)).tolist() == pytest.approx(weights)


def test_objectives_with_different_extremes_make_a_pair_each_and_only_named_responses_are_passed() -> None:
    scores, preference = [[3, 1], [1, 2], [2, 0], [2, 1]], [0.3, 0.7]
    targets = label("mi-epo", scores, preference)
    assert targets.responses == ((0, 1), (1, 2))
    assert targets.weight.tolist() == [[[0.3, 0], [0, 0]], [[0, 0], [0.7, 0]]]
    [example] = make_method(method("mo-odpo")).examples(group_of(scores, preference))  # 1.6, 1.7, 0.6, 1.3
    assert example.responses == ((31, 1), (32, 1))
    assert example.targets.responses == ((0, 1),) and example.targets.weight.tolist() == [[[1, 0]]]
    assert example.prompts == ((20, 21),) and example.preference == (0.3, 0.7)
    [with_negative] = make_method(method("mi-epo")).examples(group_of(scores, preference))
    assert with_negative.prompts == ((20, 21), (20, 22)) and len(with_negative.responses) == 3


def test_at_a_one_hot_preference_every_method_on_pairs_says_the_same() -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        scores = rng.normal(size=(2, 3)).round(1)
        weights = {tuple(label(name, scores, np.eye(3)[k]).weight.sum((0, 1))) for name in PAIR_METHODS}
        assert len(weights) == 1


def test_without_beta_w_mi_epo_is_the_method_without_the_information_term() -> None:
    made = make_method(method("mi-epo", beta_w=0))
    assert not made.negatives and make_method(method("mi-epo")).negatives
    group = group_of([[1, 0], [0, 1]], [0.3, 0.7])
    [plain], [other] = made.examples(group), make_method(method("mo-odpo-per-objective")).examples(group)
    losses = [
        make_method(config).loss(evaluated([example])).loss.item()
        for config, example in ((method("mi-epo", beta_w=0), plain), (method("mo-odpo-per-objective"), other))
    ]
    assert losses[0] == losses[1]


def test_a_margin_makes_ties_under_both_rules() -> None:
    scores, preference = [[1.0, 0.0], [0.5, 0.2]], [0.6, 0.4]
    assert label("mi-epo", scores, preference, min_margin=0.3).weight.sum((0, 1)).tolist() == pytest.approx([0.6, 0])
    assert label("mo-odpo", scores, preference).weight.sum((0, 1)).tolist() == [1.0, 0.0]  # .6 against .38
    assert label("mo-odpo", scores, preference, min_margin=0.3).weight.sum((0, 1)).tolist() == [0.0, 0.0]


def test_sampled_routes_give_all_weight_to_one_objective_and_average_to_the_preference() -> None:
    weights = [
        label("mi-epo", [[1, 0], [0, 1]], [0.3, 0.7], seed, routing="sampled").weight.sum((0, 1))[0]
        for seed in range(500)
    ]
    assert set(weights) == {0.0, 1.0}
    assert np.mean(weights) == pytest.approx(0.3, abs=0.07)


def test_two_pairs_of_a_prompt_weigh_as_much_as_one() -> None:
    """The loss is a mean over prompts: L_YC sums over a prompt's pairs, what is averaged is averaged over them too."""
    made = make_method(method("mo-odpo-per-objective", beta_c=0.5))
    [double] = made.examples(group_of([[3, 1], [1, 2], [2, 0]], [0.3, 0.7]))
    [single] = made.examples(group_of([[1, 0], [0, 1]], [0.3, 0.7]))
    both = evaluated([double, single])
    parts = [evaluated([double]), evaluated([single])]
    rows = both.block.owners
    parts = [
        dataclasses.replace(parts[0], logprob=both.logprob[rows < 3], reference=both.require_reference()[rows < 3]),
        dataclasses.replace(parts[1], logprob=both.logprob[rows >= 3], reference=both.require_reference()[rows >= 3]),
    ]
    assert made.loss(both).loss.item() == pytest.approx(np.mean([made.loss(part).loss.item() for part in parts]))


def test_group_relative_advantages_are_standardised_apart_and_weighed_by_w() -> None:
    made = make_method(method("grpo"))
    targets = made.label(group_of([[1, 10, 5], [2, 30, 5], [3, 20, 5]], [0.5, 0.25, 0.25]))
    assert targets is not None
    assert targets.advantage == pytest.approx((-0.5 - 0.25, 0.25, 0.5))  # the third objective ties
    assert targets.logprobs == ((-1.0, -2.0),) * 3


def test_grpo_at_the_sampling_policy_is_minus_the_mean_advantage_plus_the_penalty() -> None:
    """Two responses of one and three tokens; ratios 1; every token 0.5 nats above the reference."""
    logprob = torch.tensor([-1.0, -1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    share = torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6], dtype=torch.float64)
    advantage = torch.tensor([0.7, -0.7, -0.7, -0.7], dtype=torch.float64)
    output = grpo_loss(logprob, logprob.detach(), logprob.detach() - 0.5, advantage, share, clip=0.2, kl=0.04)
    penalty = float(np.exp(-0.5) + 0.5 - 1)
    assert output.loss.item() == pytest.approx(0.04 * penalty)
    assert output.metrics["kl"].item() == pytest.approx(penalty) and output.metrics["clipped_share"].item() == 0
    output.loss.backward()
    assert logprob.grad is not None
    expected = share * (-advantage + 0.04 * (1 - np.exp(-0.5)))
    torch.testing.assert_close(logprob.grad, expected)


def test_a_token_that_moved_beyond_the_clip_in_its_own_favour_has_no_gradient() -> None:
    logprob = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    output = grpo_loss(logprob, torch.zeros(4), torch.zeros(4), advantage, torch.full((4,), 0.25), clip=0.2, kl=0.0)
    output.loss.backward()
    assert logprob.grad is not None
    assert (logprob.grad == 0).tolist() == [True, False, False, True]
    assert output.metrics["clipped_share"].item() == 1


def test_grpo_s_loss_weighs_responses_of_a_prompt_and_prompts_equally() -> None:
    made = make_method(method("grpo", kl=0.0))
    assert isinstance(made, Grpo)
    examples = [*made.examples(group_of([[1, 0], [0, 1]], [1, 0])), *made.examples(group_of([[0], [1], [5]], [1.0]))]
    at = evaluated(examples)
    old = torch.tensor([token for each in examples for row in each.targets.logprobs for token in row])
    per_response = at.block.sum_by_sequence(-(at.logprob - old).exp()) / 2
    ratio = (at.logprob - old).exp().clamp(0.8, 1.2)
    advantages = [np.array(each.targets.advantage) for each in examples]
    assert per_response.shape == (5,)
    terms = []
    for row, advantage in enumerate(np.concatenate(advantages)):
        own = at.block.owners == row
        plain = (at.logprob - old).exp()[own]
        terms.append(-torch.minimum(plain * advantage, ratio[own] * advantage).mean().item())
    assert made.loss(at).loss.item() == pytest.approx((np.mean(terms[:2]) + np.mean(terms[2:])) / 2, abs=1e-5)


def random_gradients(seed: int, k: int) -> np.ndarray:
    """[K, D] of objectives that partly conflict."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, 6)) + 0.5 * rng.normal(size=6)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_the_worst_mixture_is_as_good_as_the_best_of_a_fine_grid(k: int, seed: int) -> None:
    gradients, weight = random_gradients(seed, k), np.random.default_rng(seed).dirichlet(np.ones(k))
    gram = gradients @ gradients.T
    inner, reach = gram @ weight, 0.4 * float(np.sqrt(weight @ gram @ weight))

    def value(p: np.ndarray) -> float:
        return float(p @ inner + reach * np.sqrt(p @ gram @ p))

    steps = 400 if k == 2 else 60
    ticks = [np.array(p) / steps for p in np.ndindex(*(steps + 1,) * (k - 1)) if sum(p) <= steps]
    best = min(value(np.append(p, 1 - p.sum())) for p in ticks)
    found = worst_mixture(gram, inner, reach)
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    assert value(found) <= best + 1e-9
    assert value(found) == pytest.approx(best, abs=0.02)


def test_clipped_cagrad_is_the_formula_of_the_paper() -> None:
    """g_0 + c |g_0| G_p / |G_p| with p = min(p*, w), written with the gradients themselves."""
    gradients, weight, c = random_gradients(3, 3), np.array([0.2, 0.5, 0.3]), 0.4
    weighted = weight[:, None] * gradients
    g_0 = weighted.sum(0)
    gram = gradients @ gradients.T
    p = np.minimum(worst_mixture(gram, gram @ weight, c * float(np.linalg.norm(g_0))), weight)
    direction = p @ gradients
    expected = g_0 + c * np.linalg.norm(g_0) * direction / np.linalg.norm(direction)
    coefficients = conflict_averse(weighted @ weighted.T, weight, c=c)
    assert coefficients @ weighted == pytest.approx(expected)


def test_the_combined_update_serves_its_worst_objective_better_than_the_sum_does() -> None:
    """Without the clip this is CAGrad's theorem; with it, it holds on conflicting gradients of unequal length."""
    gradients, weight = np.array([[4.0, 0.0], [-1.0, 0.5]]), np.array([0.5, 0.5])
    weighted = weight[:, None] * gradients
    coefficients = conflict_averse(weighted @ weighted.T, weight, c=0.9)
    plain, combined = (gradients @ (factors @ weighted) for factors in (np.ones(2), coefficients))
    assert plain.min() < 0 and combined.min() > plain.min()


def test_nothing_is_combined_without_c_or_without_gradients_and_an_unasked_objective_stays_out() -> None:
    gram = np.array([[2.0, -1.0], [-1.0, 3.0]])
    assert conflict_averse(gram, np.array([0.5, 0.5]), c=0.0).tolist() == [1, 1]
    assert conflict_averse(np.zeros((2, 2)), np.array([0.5, 0.5]), c=0.4).tolist() == [1, 1]
    one = conflict_averse(np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([1.0, 0.0]), c=0.4)
    assert one.tolist() == pytest.approx([1.4, 1])  # all of p is where w is
    opposed = conflict_averse(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0.5, 0.5]), c=0.4)
    assert np.isfinite(opposed).all()


def test_raco_s_parts_are_its_objectives_and_their_sum_is_the_per_objective_loss() -> None:
    made, plain = make_method(method("raco")), make_method(method("mo-odpo-per-objective"))
    assert isinstance(made, Combines) and not isinstance(plain, Combines)
    group = group_of([[3, 1], [1, 2], [2, 0]], [0.3, 0.7])
    at = evaluated([*made.examples(group), *made.examples(group_of([[1, 0], [0, 1]], [1, 0]))])
    losses = made.objective_losses(at)
    assert losses.shape == (2,)
    assert losses.sum().item() == pytest.approx(plain.loss(at).loss.item())
    assert made.loss(at, torch.tensor([2.0, 0.0])).loss.item() == pytest.approx(2 * losses[0].item())


def test_raco_needs_its_gradients_whole() -> None:
    problems = list(make_method(method("raco")).problems(dataclasses.replace(WORK, zero_stage=3)))
    assert problems == ["learner.zero_stage must be at most 2 where gradients are combined for each objective, got 3"]
    assert list(make_method(method("mi-epo")).problems(dataclasses.replace(WORK, zero_stage=3))) == []


def test_an_example_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="prompts and responses must not be empty"):
        pair_example(((1,), (2,)), ((2,), ()))


@pytest.mark.parametrize(
    ("method", "responses", "objectives", "passed"),
    [
        ({"type": "mi-epo"}, 8, 3, 6),
        ({"type": "mi-epo"}, 2, 3, 2),
        ({"type": "mi-epo", "routing": "sampled"}, 8, 3, 2),
        ({"type": "mo-odpo"}, 8, 3, 2),
        ({"type": "mi-epo-scalarized"}, 8, 3, 2),
        ({"type": "grpo"}, 8, 3, 8),
        ({"type": "ric"}, 8, 3, 1),
    ],
)
def test_an_example_passes_the_responses_that_its_judges_choose(method, responses, objectives, passed):
    config = METHODS[method["type"]].Config.model_validate(method)
    assert make_method(config).responses_per_example(responses, objectives) == passed
