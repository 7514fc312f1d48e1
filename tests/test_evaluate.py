"""The preference grid on a fake sampler whose policy is known, so that every figure can be said beforehand."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.types import Response, Rollout
from orchestrator.errors import RunFailed
from orchestrator.inputs import make_renderer
from orchestrator.recipes import load_recipe
from orchestrator.run.evaluate import Evaluator, front_metrics, measure_normalizers
from orchestrator.run.probe import policy_and_start
from orchestrator.run.sampling import Scored
from rewards.normalize import Normalizer
from tests.word_tokenizer import WordTokenizer
from tests.written_prompts import plain

RECIPE = load_recipe(
    Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml",
    ["evaluate.prompts=6", "evaluate.samples=2", "evaluate.attainable=null", "evaluate.audit_statistics={}"],
)
PROMPTS = plain(*(f"prompt {i}" for i in range(10)))
IDENTITY = Normalizer(objectives=RECIPE.objective_names, mean=(0.0, 0.0), std=(1.0, 1.0))


class FakeSampler:
    """A policy whose mean score on objective k is `gain` * w_k, with a little noise that does not depend on w."""

    def __init__(self, gain=2.0, missing=()):
        self.gain, self.missing, self.requests = gain, missing, []

    def sample(self, requests, policy_version, *, judges=("reward",), temperature=None, arrived=None):
        self.requests.append(requests)
        rollouts = tuple(
            Rollout(
                request=request,
                responses=tuple(
                    Response(token_ids=(j, 1), text=f"answer {j}", finish_reason="stop", logprobs=(-1.0,))
                    for j in range(request.num_responses)
                ),
                min_policy_version=policy_version,
                max_policy_version=policy_version,
            )
            for request in requests
        )
        noise = np.random.default_rng(0).normal(0, 0.1, (len(requests), requests[0].num_responses, 2))
        scores = self.gain * np.array([request.preference for request in requests])[:, None, :] + noise
        for index in self.missing:
            scores[index] = np.nan
        return Scored(rollouts=rollouts, scores=dict.fromkeys(judges, scores), seconds={})

    def logprobs(self, prompt_ids, response_ids):
        """Responses are likelier under the vector that comes first in the call: their own."""
        return -np.arange(len(prompt_ids), dtype=float)


class IndifferentSampler(FakeSampler):
    """Every response is as likely under any vector."""

    def logprobs(self, prompt_ids, response_ids):
        return np.full(len(prompt_ids), -7.0)


def evaluator(sampler, **options):
    renderer = make_renderer(RECIPE, WordTokenizer())
    return Evaluator(RECIPE, sampler, renderer, PROMPTS, {"reward": IDENTITY, "audit": IDENTITY}, **options)


def test_a_policy_that_follows_w_is_seen_to_follow_it():
    record = evaluator(FakeSampler())(7, 7)
    assert np.allclose(record["points"], 2 * np.array(record["preferences"]), atol=0.1)
    assert record["spearman"] == pytest.approx([1.0, 1.0])
    expected_mip = np.mean([2 * w @ w for w in np.array(record["preferences"])])
    assert record["mip"] == pytest.approx(expected_mip, abs=0.05)
    low, high = record["prompt_intervals"]["mip"]
    assert low < record["mip"] < high < low + 0.2
    assert record["crd"] == pytest.approx(0.1**4, rel=0.6)
    assert record["identification_accuracy"] == 1.0
    assert (record["step"], record["policy_version"], record["missing"]) == (7, 7, 0)


def test_a_policy_that_ignores_w_gets_no_credit_for_it():
    record = evaluator(FakeSampler(gain=0.0))(0, 0)
    assert abs(record["mip"]) < 0.1
    assert record["hypervolume"] == pytest.approx(9.0, rel=0.1)


def test_responses_that_are_as_likely_under_every_vector_tell_nothing_about_w():
    record = evaluator(IndifferentSampler())(0, 0)
    assert record["information_nats"] == pytest.approx(0)
    assert record["identification_accuracy"] == 0


def test_the_distance_to_the_start_is_of_whole_responses_and_its_log_probability_of_a_token():
    def logprobs(prompt_ids, response_ids, *, reference=False):
        return [[-1.0, -2.5] if reference else [-0.5, -0.5] for _ in prompt_ids]

    record = evaluator(FakeSampler(), policy_and_start=partial(policy_and_start, logprobs))(0, 0)
    assert record["kl_to_start"] == pytest.approx(-1.0 + 3.5)
    assert record["start_logprob"] == pytest.approx(-3.5 / 2)
    without = evaluator(FakeSampler())(0, 0)
    assert (without["kl_to_start"], without["start_logprob"]) == (None, None)


def test_equal_answers_under_one_vector_are_counted_once():
    assert evaluator(FakeSampler())(0, 0)["distinct_responses"] == 1


def test_two_evaluations_ask_the_same_requests():
    sampler = FakeSampler()
    evaluate = evaluator(sampler)
    evaluate(0, 0)
    evaluate(5, 5)
    assert sampler.requests[0] == sampler.requests[1]


def test_missing_scores_are_left_out_and_counted():
    record = evaluator(FakeSampler(missing=(0, 3)))(0, 0)
    assert record["missing"] == 4
    assert np.isfinite(record["points"]).all()


def test_a_vector_without_scores_ends_the_evaluation_with_its_name():
    with pytest.raises(RunFailed, match=r"w = \[1.0, 0.0\]"):
        front_metrics(np.array([[1.0, 0.0]]), np.full((1, 4, 2), np.nan), (-3, -3))


def test_examples_show_prompts_under_vectors_from_end_to_end():
    found = evaluator(FakeSampler())(0, 0)["examples"]
    by_prompt = {
        example["prompt"]: [each for each in found if each["prompt"] == example["prompt"]] for example in found
    }
    assert [len(examples) for examples in by_prompt.values()] == [5] * len(by_prompt)
    examples, *others = by_prompt.values()
    assert others
    assert examples[0]["preference"] == [1.0, 0.0]
    assert examples[-1]["preference"] == [0.0, 1.0]


def test_the_normaliser_is_measured_for_both_judges():
    normalizers = measure_normalizers(RECIPE, FakeSampler(), make_renderer(RECIPE, WordTokenizer()), PROMPTS, 0)
    assert set(normalizers) == {"reward", "audit"}
    assert normalizers["reward"].mean == pytest.approx((1.0, 1.0), abs=0.6)


def test_a_scorer_that_never_scores_ends_the_run_with_a_hint():
    with pytest.raises(RunFailed, match="'helpfulness': its reward scorer gave no finite score"):
        measure_normalizers(RECIPE, FakeSampler(missing=range(10)), make_renderer(RECIPE, WordTokenizer()), PROMPTS, 0)
