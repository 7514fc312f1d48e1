"""Engines and learner on the same tokens: what they differ by, what is too much, and a KL that begins at zero."""

from pathlib import Path

import pytest

from actors.types import GenerationRequest, Response, Rollout
from orchestrator.errors import RunFailed
from orchestrator.recipes import load_recipe
from orchestrator.run.probe import PROMPTS, Probe, engine_mismatch, policy_and_start, tolerance
from orchestrator.run.sampling import Scored
from rewards.prompts import Prompt

RECIPE = Path(__file__).parents[1] / "deploy" / "recipes" / "miniature.yaml"
REQUESTS = [
    GenerationRequest(
        request_id=f"r{i}", prompt=Prompt(text="p"), prompt_ids=(1, i), preference=(0.5, 0.5), num_responses=2, seed=i
    )
    for i in range(6)
]


class FakeSampler:
    """Every response has two tokens, of log-probability -1 and -2."""

    def __init__(self):
        self.asked = []

    def sample(self, requests, policy_version, *, judges=("reward",), temperature=None, arrived=None):
        self.asked.append((len(requests), policy_version, judges))
        response = Response(token_ids=(7, 8), text="a b", finish_reason="stop", logprobs=(-1.0, -2.0))
        rollouts = tuple(
            Rollout(
                request=request,
                responses=(response,) * request.num_responses,
                min_policy_version=policy_version,
                max_policy_version=policy_version,
            )
            for request in requests
        )
        return Scored(rollouts=rollouts, scores={}, seconds={})

    def logprobs(self, prompt_ids, response_ids):
        raise AssertionError("what was sampled is what counts")


def learner_that_says(*logprobs_T):
    def token_logprobs(prompt_ids, response_ids, *, reference=False):
        assert not reference
        return [list(logprobs_T) for _ in response_ids]

    return token_logprobs


def probe(*logprobs_T, overrides=()):
    sampler = FakeSampler()
    recipe = load_recipe(RECIPE, list(overrides))
    return sampler, Probe(recipe, sampler, learner_that_says(*logprobs_T), likely_tokens, REQUESTS)


def likely_tokens(prompt_ids, response_ids):
    """(entropy, mass): of half of the responses others than of the rest."""
    return [(0.5 + index % 2, 0.8 + 0.1 * (index % 2)) for index, _ in enumerate(response_ids)]


def test_the_mismatch_is_the_mean_absolute_difference_of_all_tokens():
    assert engine_mismatch([(-1.0, -2.0), (-3.0,)], [[-1.5, -1.5], [-3.0]]) == pytest.approx(1 / 3)
    assert engine_mismatch([(), ()], [[], []]) == 0


def test_few_prompts_are_sampled_and_nobody_scores_them():
    sampler, compare = probe(-1.0003, -1.9997)
    found = compare(5)
    assert found.engine_mismatch == pytest.approx(0.0003)
    assert (found.top_entropy, found.top_mass) == pytest.approx((1.0, 0.85))
    assert sampler.asked == [(PROMPTS, 5, ())]


def test_more_than_rounding_explains_ends_the_run_with_the_version_and_both_figures():
    _, compare = probe(-1.004, -2.0)
    with pytest.raises(RunFailed, match=r"by 0\.0020 nats a token at policy version 7 \(allowed 0\.001\)"):
        compare(7)
    _, compare = probe(float("nan"), -2.0)
    with pytest.raises(RunFailed, match="by nan nats"):
        compare(0)


@pytest.mark.parametrize("section", ["learner", "rollout"])
def test_bfloat16_on_either_side_is_allowed_what_its_rounding_explains(section):
    _, compare = probe(-1.1, -2.0, overrides=[f"{section}.dtype=bfloat16"])
    assert compare(1).engine_mismatch == pytest.approx(0.05)
    on_gpu = load_recipe(RECIPE, [f"{section}.num_gpus=1"])
    assert tolerance(on_gpu) == tolerance(load_recipe(RECIPE, [f"{section}.dtype=bfloat16"])) == 0.15
    assert tolerance(load_recipe(RECIPE, [])) == 1e-3


def test_it_is_due_after_the_first_update_every_so_often_and_last():
    _, compare = probe(overrides=["loop.probe_every=10"])
    assert [version for version in range(31) if compare.is_due(version)] == [0, 1, 10, 20, 30]
    assert compare.is_due(17, last=True) and not compare.is_due(17)
    _, never = probe(overrides=["loop.probe_every=0"])
    assert not any(never.is_due(version, last=True) for version in range(31))


def test_policy_and_start_are_of_whole_responses_and_by_the_learner_alone():
    def token_logprobs(prompt_ids, response_ids, *, reference=False):
        return [[-1.0, -3.0], [-2.0]] if reference else [[-0.5, -2.5], [-2.25]]

    policy_N, start_N = policy_and_start(token_logprobs, [(1,), (2,)], [(3, 4), (5,)])
    assert (policy_N.tolist(), start_N.tolist()) == ([-3.0, -2.25], [-4.0, -2.0])
