"""Rewarded soups: the average itself, and that every w is answered by its own."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.types import GenerationRequest, Response, Rollout
from learner.methods import Merger, Tried, make_method
from learner.soup import SoupSource, average
from learner.types import LearnerError
from orchestrator.errors import BadInput
from orchestrator.inputs import Inputs, make_renderer
from orchestrator.recipes import load_recipe
from orchestrator.run.merges import save_merges, try_merges
from orchestrator.run.sampling import Scored
from orchestrator.run.soup_sampler import RememberingRenderer, SoupSampler
from orchestrator.run.soups import part_recipes, train_parts
from orchestrator.run.speaker import Speaker
from orchestrator.run.steering import PolicyConditioning
from rewards.config import PreferencesConfig
from rewards.normalize import Normalizer
from rewards.prompts import Prompt
from tests.learner_ranks import method
from tests.tiny_models import make_tiny_policy
from tests.word_tokenizer import WordTokenizer

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"
RECIPE = load_recipe(MINIATURE, ["method=rewarded-soups"])


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return [make_tiny_policy(folder / str(seed), seed=seed) for seed in (0, 1)]


def weights_of(source):
    return {spec.name: tensor.clone() for bucket in source.buckets() for spec, tensor in bucket}


def saved(folder):
    return load_file(folder / "model.safetensors")


def test_the_soup_is_the_weighted_average_of_every_tensor(experts):
    source = SoupSource(experts, bucket_bytes=10_000)
    source.mix([0.3, 0.7])
    found, (first, second) = weights_of(source), map(saved, experts)
    assert set(found) == set(first)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.3 * first[name] + 0.7 * second[name])


@pytest.mark.parametrize("k", [0, 1])
def test_at_a_one_hot_preference_the_soup_is_that_expert_bit_for_bit(experts, k):
    source = SoupSource(experts, bucket_bytes=1 << 20)
    source.mix([float(j == k) for j in range(2)])
    found, expected = weights_of(source), saved(experts[k])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_averaging_merged_adapters_is_concatenating_them_along_their_rank():
    generator = torch.Generator().manual_seed(0)
    base, weights = torch.randn(6, 5, generator=generator), (0.2, 0.8)
    ups, downs = torch.randn(2, 6, 3, generator=generator), torch.randn(2, 3, 5, generator=generator)
    merged = [base + up @ down for up, down in zip(ups, downs, strict=True)]
    concatenated = base + torch.cat([w * up for w, up in zip(weights, ups, strict=True)], 1) @ torch.cat(list(downs))
    torch.testing.assert_close(average(merged, weights), concatenated)


def test_the_buckets_keep_to_their_size(experts):
    source = SoupSource(experts, bucket_bytes=20_000)
    sizes = [[spec.num_bytes for spec, _ in bucket] for bucket in source.buckets()]
    assert len(sizes) > 3 and all(sum(size) <= 20_000 or len(size) == 1 for size in sizes)


def test_policies_of_other_sizes_cannot_be_mixed(experts, tmp_path):
    other = make_tiny_policy(tmp_path / "other", vocab=120)
    with pytest.raises(LearnerError, match="must hold the same tensors"):
        SoupSource([experts[0], other], bucket_bytes=1 << 20)
    with pytest.raises(LearnerError, match="holds no policy"):
        SoupSource([tmp_path], bucket_bytes=1 << 20)


def test_an_expert_trains_under_its_one_hot_preference_for_its_share_of_the_steps():
    experts = part_recipes(RECIPE)
    assert [expert.preferences.fixed for expert in experts] == [(1.0, 0.0), (0.0, 1.0)]
    assert [expert.loop.steps for expert in experts] == [50, 50]
    assert {expert.method.type for expert in experts} == {"mo-odpo"}
    assert {expert.method.model_dump()["beta_c"] for expert in experts} == {0.3}, "with the recipe's own settings"


def test_steps_that_the_experts_cannot_share_are_refused():
    with pytest.raises(BadInput, match=r"loop\.steps must be a multiple of the 2 objectives"):
        load_recipe(MINIATURE, ["method=rewarded-soups", "loop.steps=25"])


def test_a_soup_on_gpu_engines_is_refused_before_anything_loads(tmp_path):
    with pytest.raises(BadInput, match="rewarded-soups evaluates its averages on CPU engines only"):
        train_parts(load_recipe(MINIATURE, ["method=rewarded-soups", "rollout.num_gpus=1"]), tmp_path / "run")


class FakeEngines:
    """Engines and the way into them: they remember what was mixed when they were asked."""

    def __init__(self):
        self.mixed: tuple[float, ...] = ()
        self.answered: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
        self.version = 0

    def mix(self, weights):
        self.next = tuple(weights)

    def __len__(self):
        return 3  # two experts and the start

    def push_weights(self, version):
        self.mixed, self.version = self.next, version

    def sample(self, requests, policy_version, *, judges=("reward",), temperature=None, arrived=None):
        assert policy_version == self.version
        self.answered += [(self.mixed, request.preference) for request in requests]
        response = Response(token_ids=(1,), text=json.dumps(self.mixed), finish_reason="stop", logprobs=(-1.0,))
        rollouts = tuple(
            Rollout(request=r, responses=(response,), min_policy_version=self.version, max_policy_version=self.version)
            for r in requests
        )
        scores = np.array([[[request.seed, 0.0]] for request in requests])
        return Scored(rollouts=rollouts, scores=dict.fromkeys(judges, scores), seconds={"generate": 1.0})

    def logprobs(self, prompt_ids, response_ids):
        return np.full(len(prompt_ids), -100 * self.mixed[0] - 10 * self.mixed[1] - self.mixed[2])


def soup_sampler():
    engines = FakeEngines()
    renderer, merger = RememberingRenderer(make_renderer(RECIPE, WordTokenizer())), make_method(RECIPE.method)
    assert isinstance(merger, Merger)
    return SoupSampler(engines, engines, engines, renderer, partial(merger.coefficients, tried=None)), renderer


def test_every_preference_is_answered_by_its_own_average_in_the_order_asked():
    sampler, renderer = soup_sampler()
    preferences = [(1.0, 0.0), (0.4, 0.6), (1.0, 0.0)]
    requests = [
        GenerationRequest(
            request_id=str(i), prompt=Prompt(text="x"), prompt_ids=tuple(renderer.token_ids("x", w)), preference=w,
            num_responses=1, seed=i,
        )
        for i, w in enumerate(preferences)
    ]  # fmt: skip
    found = sampler.sample(requests, 0)
    assert [rollout.request.request_id for rollout in found.rollouts] == ["0", "1", "2"]
    mixed = [tuple(json.loads(rollout.responses[0].text)) for rollout in found.rollouts]
    assert mixed == [(1.0, 0.0, 0.0), (0.4, 0.6, 0.0), (1.0, 0.0, 0.0)]
    assert found.scores["reward"][:, 0, 0].tolist() == [0, 1, 2]
    assert found.seconds == {"generate": 2.0}


def test_log_probabilities_are_those_of_the_prompt_s_own_average_and_of_the_start_where_asked():
    sampler, renderer = soup_sampler()
    prompts = [tuple(renderer.token_ids("x", w)) for w in ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0))]
    assert sampler.logprobs(prompts, [(1,)] * 3).tolist() == [-10, -100, -10]
    averaged, start = sampler.policy_and_start(prompts, [(1,)] * 3)
    assert (averaged - start).tolist() == [-9, -99, -9]


def test_a_soup_answers_as_its_expert_at_a_corner_and_as_neither_in_between(tmp_path):
    run = tmp_path / "soup"
    for seed, name in enumerate(("a", "b")):
        policy = make_tiny_policy(run / "experts" / f"soup-{name}" / "policy", seed=seed)
        record = PolicyConditioning(
            objectives=("a", "b"), preferences=PreferencesConfig(), max_new_tokens=8, temperature=1.0
        )
        (policy / "mi_epo.json").write_text(record.model_dump_json())

    def said(path, a):
        return Speaker(path).answers("t20 t21", [a, 1 - a])

    assert said(run, 1.0) == said(run / "experts" / "soup-a", 1.0)
    assert said(run, 0.0) == said(run / "experts" / "soup-b", 0.0)
    assert said(run, 0.5) not in (said(run / "experts" / "soup-a", 0.5), said(run / "experts" / "soup-b", 0.5))


def test_a_soup_that_lacks_an_expert_is_refused(tmp_path):
    policy = make_tiny_policy(tmp_path / "experts" / f"{tmp_path.name}-a" / "policy")
    record = PolicyConditioning(
        objectives=("a", "b"), preferences=PreferencesConfig(), max_new_tokens=8, temperature=1.0
    )
    (policy / "mi_epo.json").write_text(record.model_dump_json())
    with pytest.raises(BadInput, match="lacks the expert of 'b'"):
        Speaker(tmp_path)


# merges that are tried


SEARCHED = make_method(method("searched-soups"))
MAP = make_method(method("map-merging"))


def test_as_many_merges_are_tried_as_the_finest_grid_has_within_the_limit():
    assert isinstance(SEARCHED, Merger)
    for k, count in ((2, 24), (3, 26), (4, 15), (5, 31)):
        candidates = SEARCHED.candidates(k)
        assert len(candidates) == len(set(candidates)) == count <= 32
        assert set(map(tuple, np.eye(k))) < set(candidates) and (0.0,) * k not in candidates


def test_a_searched_soup_takes_the_merge_that_was_best_for_w_in_the_trial():
    assert isinstance(SEARCHED, Merger)
    tried = Tried(coefficients=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), rewards=((2.0, -1.0), (-1.0, 2.0), (1.5, 1.0)))
    chosen = [SEARCHED.coefficients([w, 1 - w], tried) for w in (1.0, 0.5, 0.0)]
    assert chosen == [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]


def test_map_merging_finds_the_best_of_rewards_that_are_quadratic_between_the_merges_that_were_tried():
    assert isinstance(MAP, Merger)

    def rewards(c):
        return (1 - (c[0] - 0.6) ** 2 - 0.1 * c[1], 0.5 * c[1] - (c[1] - 0.3) ** 2 + 0.2 * c[0] * c[1])

    candidates = tuple(MAP.candidates(2))
    tried = Tried(coefficients=candidates, rewards=tuple(map(rewards, candidates)))
    for w in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0]):
        found = MAP.coefficients(w, tried)
        fine = [(a / 99, b / 99) for a in range(100) for b in range(100)]
        best = max(fine, key=lambda c: np.dot(w, rewards(c)))
        assert found == pytest.approx(best, abs=1e-9)


def test_what_a_merge_lacks_of_one_is_the_starts_and_each_answers_prompts_in_its_own_proportion():
    sampler, _ = soup_sampler()
    engines = sampler.sampler
    assert isinstance(engines, FakeEngines)
    inputs = Inputs(
        train=(Prompt(text="x"), Prompt(text="y")),
        heldout=(),
        renderer=make_renderer(RECIPE, WordTokenizer()),
        longest_prompt_tokens=9,
        mean_prompt_tokens=9.0,
    )
    normalizer = Normalizer(objectives=("helpfulness", "harmlessness"), mean=(0.0, 0.0), std=(1.0, 1.0))
    trial = try_merges(RECIPE, [(1.0, 0.5), (0.25, 0.0)], sampler, inputs, normalizer)
    assert engines.answered == [((1.0, 0.5, -0.5), (0.7, 0.3))] * 2 + [((0.25, 0.0, 0.75), (1.0, 0.0))] * 2
    assert trial.tried.coefficients == ((1.0, 0.5), (0.25, 0.0)) and len(trial.tried.rewards[0]) == 2
    assert trial.generated_tokens == 4


def test_a_searched_soup_answers_by_the_merges_of_its_run(tmp_path):
    run, start = tmp_path / "soup", make_tiny_policy(tmp_path / "start", seed=7)
    for seed, name in enumerate(("a", "b")):
        policy = make_tiny_policy(run / "experts" / f"soup-{name}" / "policy", seed=seed)
        record = PolicyConditioning(
            objectives=("a", "b"), preferences=PreferencesConfig(), max_new_tokens=8, temperature=1.0
        )
        (policy / "mi_epo.json").write_text(record.model_dump_json())
    tried = Tried(coefficients=((1.0, 0.0), (0.0, 1.0)), rewards=((0.0, 1.0), (1.0, 0.0)))  # each serves the other
    save_merges(run, method("searched-soups"), start, tried)
    crossed = Speaker(run).answers("t20 t21", [1.0, 0.0])
    assert crossed == Speaker(run / "experts" / "soup-b").answers("t20 t21", [1.0, 0.0])
    save_merges(run, method("searched-soups"), tmp_path / "gone", tried)
    with pytest.raises(BadInput, match=r"merges\.json: start: must be the policy that all experts started from"):
        Speaker(run)
