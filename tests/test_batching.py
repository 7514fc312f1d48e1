"""Requests from prompts, pairs from scored responses: pure functions of recipe, seed and step."""

from pathlib import Path

import numpy as np
import pytest

from actors.types import Response, Rollout
from orchestrator.errors import BadInput
from orchestrator.inputs import make_renderer
from orchestrator.recipes import load_recipe
from orchestrator.run.batching import Batcher, ScoredBatch, make_request
from orchestrator.run.in_flight import load_in_flight, save_in_flight
from rewards.environment import derive_seed
from rewards.normalize import Normalizer
from rewards.prompts import Prompt
from tests.learner_ranks import weights_of_pair
from tests.word_tokenizer import WordTokenizer
from tests.written_prompts import parse, plain

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"
NORMALIZER = Normalizer(objectives=("helpfulness", "harmlessness"), mean=(0.0, 5.0), std=(1.0, 4.0))
PROMPTS = plain(*(f"how do i fix thing {i} ?" for i in range(40)))


def make_batcher(*overrides, skipped=()):
    recipe = load_recipe(MINIATURE, ["loop.prompts_per_step=4", *overrides])
    return Batcher(recipe, PROMPTS, make_renderer(recipe, WordTokenizer()), NORMALIZER, skipped=skipped)


def score(batch, scores):
    rollouts = tuple(
        Rollout(
            request=request,
            responses=tuple(
                Response(token_ids=(7 + j, 1), text=f"answer {j}", finish_reason="stop", logprobs=(-0.4, -0.6))
                for j in range(request.num_responses)
            ),
            min_policy_version=3,
            max_policy_version=3,
        )
        for request in batch.requests
    )
    return ScoredBatch(batch=batch, rollouts=rollouts, scores=np.asarray(scores, dtype=float), seconds={})


def test_the_same_step_can_be_made_again_and_another_seed_gives_another():
    first, again = make_batcher().requests(5), make_batcher().requests(5)
    assert first.requests == again.requests
    assert np.array_equal(first.preference_neg, again.preference_neg)
    assert make_batcher("seed=1").requests(5).requests != first.requests


def test_a_fixed_preference_is_asked_everywhere_and_the_negative_one_is_still_drawn():
    batch = make_batcher("preferences.fixed=[0, 1]").requests(3)
    assert {request.preference for request in batch.requests} == {(0.0, 1.0)}
    assert np.array_equal(batch.preference_neg, make_batcher().requests(3).preference_neg)


def test_every_request_has_an_id_and_a_seed_of_its_own():
    requests = [request for step in range(20) for request in make_batcher().requests(step).requests]
    assert len({request.request_id for request in requests}) == len({request.seed for request in requests}) == 80
    assert all(0 < request.seed < 2**63 for request in requests)


def test_the_loss_uses_exactly_the_weights_that_are_printed():
    batcher = make_batcher()
    for request in batcher.requests(0).requests:
        text = batcher.renderer.text(request.prompt, request.preference)
        assert parse(batcher.renderer, text)[1] == pytest.approx(request.preference, abs=1e-12)
        assert sum(request.preference) == pytest.approx(1.0)


def test_pair_weights_sum_the_preference_over_the_objectives_each_response_wins():
    batcher = make_batcher()
    batch = batcher.requests(0)
    scores = [[[1, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 5], [0, 5]], [[0, 0], [2, 0]]]
    found, statistics = batcher.examples(score(batch, scores))
    w = [request.preference for request in batch.requests]
    weights = [weights_of_pair(example) for example in found.examples]
    assert weights[0] == pytest.approx(w[0])
    assert weights[1] == pytest.approx((1.0, 0.0))
    assert weights[2] == (0.0, 0.0)
    assert weights[3] == pytest.approx((0.0, w[3][0]))
    assert [example.preference for example in found.examples] == w
    assert statistics.conflict_rate == pytest.approx(0.25)
    assert statistics.dropped == 0


def test_a_scalarized_method_gives_all_weight_to_the_higher_weighted_normalised_score():
    batcher = make_batcher("method=mo-odpo")
    batch = batcher.requests(0)
    scores = [[[0, 0], [1, -3]], [[1, 1], [0, 0]], [[0, 5], [0, 5]], [[0, 0], [2, 0]]]
    found, _ = batcher.examples(score(batch, scores))
    w = batch.requests[0].preference
    second_wins = w[0] * 1 > w[1] * 3 / 4  # y2 gains one deviation of the first, loses 3/4 of the second objective
    first, *rest = [weights_of_pair(example) for example in found.examples]
    assert first == ((0.0, 1.0) if second_wins else (1.0, 0.0))
    assert rest == [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]


def test_what_was_in_flight_is_read_back_as_it_was(tmp_path):
    batcher = make_batcher("preferences.negatives=2")
    scores = np.random.default_rng(0).normal(size=(2, 4, 2, 2))
    scores[0, 1, 0, 1] = np.nan
    batches = [score(batcher.requests(step), one) for step, one in zip((7, 8), scores, strict=True)]
    save_in_flight(tmp_path, batches)
    for future, batch in zip(
        load_in_flight(tmp_path, make_batcher("preferences.negatives=2").requests), batches, strict=True
    ):
        found = future.result()
        assert found.rollouts == batch.rollouts and found.batch.step == batch.batch.step
        assert np.array_equal(found.scores, batch.scores, equal_nan=True)
        assert repr(batcher.examples(found)[0]) == repr(batcher.examples(batch)[0])


@pytest.mark.parametrize(
    "change", ["loop.prompts_per_step=8", "loop.responses_per_prompt=4", "seed=1", "preferences.alpha=2"]
)
def test_what_was_in_flight_is_left_out_where_its_step_asks_otherwise_now(tmp_path, change):
    batcher = make_batcher()
    save_in_flight(tmp_path, [score(batcher.requests(7), np.zeros((4, 2, 2)))])
    assert len(load_in_flight(tmp_path, batcher.requests)) == 1
    assert load_in_flight(tmp_path, make_batcher(change).requests) == []


def test_a_broken_record_of_what_was_in_flight_is_named(tmp_path):
    batcher = make_batcher()
    (tmp_path / "in_flight.json").write_text('{"batches": [], "x": 1}')
    with pytest.raises(BadInput, match=r"in_flight\.json: x: unknown key"):
        load_in_flight(tmp_path, batcher.requests)


def test_of_more_responses_each_objective_pairs_its_best_with_its_worst():
    batcher = make_batcher("loop.responses_per_prompt=3", "preferences.negatives=2", "preferences.fixed=[0.3, 0.7]")
    batch = batcher.requests(0)
    assert {request.num_responses for request in batch.requests} == {3}
    same, split = [[2, 2], [1, 1], [0, 0]], [[2, 1], [0, 2], [1, 0]]
    found, statistics = batcher.examples(score(batch, [same, split, same, np.full((3, 2), np.nan)]))
    first, two, last = found.examples
    assert first.responses == ((7, 1), (9, 1)) and weights_of_pair(first) == (1.0, 0.0)
    assert two.responses == ((7, 1), (8, 1), (9, 1)) and two.targets.responses == ((0, 1), (1, 2))
    assert two.targets.weight.sum(axis=1).tolist() == [[0.3, 0.0], [0.7, 0.0]]
    assert last.prompts[0] == batch.requests[2].prompt_ids
    assert (statistics.dropped, statistics.conflict_rate, statistics.tie_rate) == (1, pytest.approx(1 / 3), 0.0)
    others = [batcher.renderer.token_ids(batch.requests[1].prompt, w) for w in batch.preference_neg[1]]
    assert two.prompts[1:] == tuple(map(tuple, others)) and len(others) == 2


def test_of_three_responses_two_complete_ones_are_enough_for_a_pair():
    batcher = make_batcher("loop.responses_per_prompt=3")
    scores = np.array([[[2, 2], [np.nan, 9], [0, 0]], [[1, np.inf], [np.nan, 1], [0, 0]], *np.ones((2, 3, 2))])
    found, statistics = batcher.examples(score(batcher.requests(0), scores))
    assert [example.responses for example in found.examples] == [((7, 1), (9, 1)), *[((7, 1), (8, 1))] * 2]
    assert statistics.dropped == 2


def test_the_negative_prompt_is_the_same_prompt_under_the_other_vector():
    batcher = make_batcher()
    batch = batcher.requests(0)
    found, _ = batcher.examples(score(batch, np.ones((4, 2, 2))))
    for row, example in enumerate(found.examples):
        expected = batcher.renderer.token_ids(batch.requests[row].prompt, batch.preference_neg[row, 0])
        assert example.prompts == (batch.requests[row].prompt_ids, tuple(expected))


def test_a_policy_gradient_gets_the_log_probabilities_of_the_sampled_tokens():
    batcher = make_batcher("method=grpo", "preferences.fixed=[1, 0]")
    found, _ = batcher.examples(score(batcher.requests(0), [[[1, 0], [3, 0]]] * 4))
    assert found.examples[0].targets.logprobs == ((-0.4, -0.6), (-0.4, -0.6))
    assert found.examples[0].targets.advantage == pytest.approx((-(0.5**0.5), 0.5**0.5))
    assert [len(example.prompts) for example in found.examples] == [1] * 4


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_a_prompt_with_a_missing_or_infinite_score_is_dropped_and_counted_not_zeroed(missing):
    batcher = make_batcher()
    scores = np.ones((4, 2, 2))
    scores[1, 0, 1] = missing
    found, statistics = batcher.examples(score(batcher.requests(0), scores))
    assert len(found.examples) == 3
    assert statistics.dropped == 1


def test_a_batch_without_any_score_gives_no_examples():
    batcher = make_batcher()
    found, statistics = batcher.examples(score(batcher.requests(0), np.full((4, 2, 2), np.nan)))
    assert found.examples == ()
    assert statistics.dropped == 4


def test_seeds_of_neighbours_are_unrelated():
    assert abs(derive_seed(0, "train", 1, 2) - derive_seed(0, "train", 1, 3)) > 2**32


def test_a_request_carries_the_plain_prompt_beside_the_conditioned_one():
    batcher = make_batcher()
    request = make_request(
        batcher.renderer, prompt=Prompt(text="hello there"), preference=[0.3, 0.7], num_responses=2, seed_parts=(0, "x")
    )
    assert request.prompt == Prompt(text="hello there")
    assert len(request.prompt_ids) > 2


def test_a_step_whose_update_is_left_out_gives_no_examples_and_its_neighbour_does():
    batcher = make_batcher(skipped=(5,))
    scores = [[[1, 2], [3, 4]]] * 4
    left_out, statistics = batcher.examples(score(batcher.requests(5), scores))
    assert left_out.step == 5 and left_out.examples == () and statistics.tie_rate == 0
    assert len(batcher.examples(score(batcher.requests(6), scores))[0].examples) == 4
