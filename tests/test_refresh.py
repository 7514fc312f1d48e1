"""Judges fitted further to annotators: what is learned from, carried over, and had again by a run that goes on."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.reward import RewardActor
from actors.types import GenerationRequest, Response, Rollout
from orchestrator.errors import BadInput
from orchestrator.recipes import load_recipe
from orchestrator.run.refresh import NORMALIZER, Refresher, agreement, carried_over, comparisons
from orchestrator.run.rundir import RunDir
from orchestrator.run.sampling import Scored
from orchestrator.tasks.fitting.bradley_terry import fit_reward
from orchestrator.tasks.fitting.config import Architecture, ByteLevelBPE, Optimization, RewardFitConfig
from rewards.judge_sections import HuggingFaceScorerConfig, refreshed
from rewards.judges import build_scorer
from rewards.normalize import Normalizer
from rewards.prompts import Prompt

RECIPE = Path(__file__).parents[1] / "deploy" / "recipes" / "miniature.yaml"
WORDS = ("sun", "rain", "wind", "snow", "fog", "ice")
PROMPTS = [Prompt(text=f"question {number}") for number in range(12)]


def sunny(prompts, responses):
    """An annotator: the more sun the better."""
    return [float(response.count("sun")) for response in responses]


def answers(*texts):
    request = GenerationRequest(
        request_id="r", prompt=Prompt(text="why?"), prompt_ids=(1,), preference=(1.0,), num_responses=2, seed=0
    )
    responses = tuple(Response(token_ids=(1,), text=text, finish_reason="stop", logprobs=(-1.0,)) for text in texts)
    return Rollout(request=request, responses=responses, min_policy_version=0, max_policy_version=0)


# what is compared


def test_every_two_answers_that_an_annotator_tells_apart_are_compared_with_the_share_of_a_panel():
    told = np.array([[2.0, 1.0, 1.0, math.nan]])
    rows = list(comparisons([answers("a", "b", "c", "d")], told, sharpness=None))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("a", "b"), ("a", "c")]
    assert {row["prompt"] for row in rows} == {"why?"} and {row["probability"] for row in rows} == {1.0}
    (row, _) = comparisons([answers("a", "b", "c", "d")], -told, sharpness=3.0)
    assert (row["chosen"], row["probability"]) == ("b", pytest.approx(1 / (1 + math.exp(-3))))
    assert list(comparisons([answers("same", "same")], np.array([[2.0, 1.0]]), sharpness=None)) == []


def test_a_judge_agrees_where_it_ranks_as_its_annotator_does_and_a_tie_is_no_agreement():
    told, judged = np.array([[3.0, 2.0, 1.0, math.nan]]), np.array([[5.0, 1.0, 1.0, 9.0]])
    assert agreement(judged, told) == pytest.approx(2 / 3)
    assert math.isnan(agreement(judged, np.ones((1, 4))))


def test_answers_keep_mean_and_spread_when_their_judge_shifts_and_stretches_its_scores():
    before = Normalizer(objectives=("a", "b"), mean=(1.0, 0.0), std=(2.0, 1.0), quantiles=((0.0, -1.0), (3.0, 1.0)))
    old = np.random.default_rng(0).normal(size=(5, 4, 2))
    new = old * [3.0, 0.5] + [-7.0, 2.0]
    new[0, 0] = math.nan
    after = carried_over(before, old, new)
    assert after.apply(new[1:]) == pytest.approx(before.apply(old[1:]))
    assert np.array(after.quantiles) == pytest.approx(np.array([[-7.0, 1.5], [2.0, 2.5]]))
    flat = carried_over(before, np.ones((2, 2, 2)), np.zeros((2, 2, 2)))
    assert flat == before


# what a recipe may ask for


def overridden(*overrides):
    return load_recipe(RECIPE, list(overrides))


def test_annotators_and_refresh_need_each_other():
    with pytest.raises(BadInput, match="need each other, got refresh, without an annotator"):
        overridden("refresh={every: 5, learning_rate: 0.001}")
    with pytest.raises(BadInput, match="need each other, got annotator of helpfulness, without refresh"):
        overridden("objectives.0.annotator={type: python, function: 'tests.test_refresh:sunny'}")


def test_only_a_reward_model_that_could_be_fitted_takes_an_annotator():
    sun = "objectives.0.annotator={type: python, function: 'tests.test_refresh:sunny'}"
    every = "refresh={every: 5, learning_rate: 0.001}"
    with pytest.raises(BadInput, match=r"annotator needs a scorer that fit-reward could have made .* got python"):
        overridden(sun, every, "objectives.0.scorer={type: python, function: 'rewards.functions:brevity'}")
    with pytest.raises(BadInput, match="got huggingface"):
        overridden(sun, every, "objectives.0.scorer.negate=true")
    assert overridden(sun, every).objectives[0].single_judges[-1].type == "python"


# a refresh


class FakeSampler:
    """Answers at random, has the annotator `sunny` and the judges that it is told of."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.fitted = None

    def sample(self, requests, policy_version, *, judges=("reward",), temperature=None, arrived=None):
        rollouts = tuple(self._answer(request) for request in requests)
        scores = {judge: self.score(rollouts, judge) for judge in judges}
        return Scored(rollouts=rollouts, scores=scores, seconds={})

    def logprobs(self, prompt_ids, response_ids):
        raise AssertionError("nobody asks")

    def use_judges(self, fitted):
        self.fitted = fitted

    def score(self, rollouts, judge):
        """[B, N, 2]; the second objective has no annotator and one judge throughout."""
        texts = [response.text for rollout in rollouts for response in rollout.responses]
        if judge == "annotator":
            first, second = np.array(sunny(texts, texts)), np.full(len(texts), math.nan)
        else:
            config = self.scorer if self.fitted is None else refreshed("helpfulness", self.scorer, self.fitted)
            first, second = build_scorer(config).score(texts, texts), np.array([float(len(text)) for text in texts])
        return np.stack([first, second], -1).reshape(len(rollouts), -1, 2)

    def _answer(self, request):
        rng = np.random.default_rng(request.seed)
        texts = [" ".join(rng.choice(WORDS, size=5)) for _ in range(request.num_responses)]
        return replace(answers(*texts), request=request)


class Renderer:
    def token_ids(self, prompt, preference):
        return (1, 2)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Was taught that rain is good."""
    folder = tmp_path_factory.mktemp("judge") / "helpfulness"
    rows = [
        {"prompt": f"q{n}", "chosen": "rain " * (1 + n % 3), "rejected": f"{word} {WORDS[n % 6]}"}
        for n, word in enumerate(word for word in WORDS * 4 if word != "rain")
    ]
    fit_reward(
        RewardFitConfig(
            output=str(folder),
            architecture=Architecture(
                hidden_size=32, num_layers=1, num_heads=1, intermediate_size=48, max_positions=64
            ),
            tokenizer=ByteLevelBPE(vocab_size=300),
            template="{response}",
            optimization=Optimization(steps=20, batch_size=8, learning_rate=1e-2),
            max_length=64,
        ),
        rows,
        [],
    )
    return HuggingFaceScorerConfig(model=str(folder), template="{response}", max_length=64)


def recipe_of(judge):
    return overridden(
        f"objectives.0.scorer={{type: huggingface, model: {judge.model}, template: '{{response}}', max_length: 64}}",
        "objectives.0.annotator={type: python, function: 'tests.test_refresh:sunny'}",
        "refresh={every: 2, prompts: 10, responses: 8, steps: 60, prompts_per_step: 10, learning_rate: 0.01}",
    )


def refresher(judge, run_path):
    sampler = FakeSampler(judge)
    said: list[str] = []
    normalizer = Normalizer(objectives=("helpfulness", "harmlessness"), mean=(0.0, 0.0), std=(1.0, 1.0))
    made = Refresher(recipe_of(judge), sampler, Renderer(), PROMPTS, normalizer, RunDir(run_path), say=said.append)
    return made, sampler, said


def test_a_refreshed_judge_ranks_fresh_answers_as_its_annotator_and_a_run_that_goes_on_has_it(judge, tmp_path):
    made, _, said = refresher(judge, tmp_path)
    assert [step for step in range(7) if made.is_due(step)] == [2, 4, 6]
    first = made(2, 2)
    assert first.labels == len((tmp_path / "judges/step-000002/pairs-helpfulness.jsonl").read_text().splitlines())
    assert first.generated_tokens == 80 and first.accuracy["helpfulness"] < 0.7
    assert first.normalizer.mean[1] == 0.0, "of an objective without an annotator nothing changes"
    second = made(4, 4)
    assert second.accuracy["helpfulness"] > 0.8 and "before step 5: helpfulness ranked" in said[-1]

    again, other, _ = refresher(judge, tmp_path)
    assert again.restore(2).mean == (0.0, 0.0) and other.fitted is None, "the refresh before step 3 is made again"
    assert again.restore(4) == first.normalizer and other.fitted == tmp_path / "judges/step-000002"
    weights = (tmp_path / "judges/step-000004/helpfulness/model.safetensors").read_bytes()
    assert again(4, 4) == second
    assert (tmp_path / "judges/step-000004/helpfulness/model.safetensors").read_bytes() == weights

    RunDir(tmp_path).rewind(3)
    assert [path.name for path in (tmp_path / "judges").iterdir()] == ["step-000002"]
    (tmp_path / "judges/step-000002" / NORMALIZER).unlink()
    with pytest.raises(BadInput, match=r"step-000002/normalizer\.json: must hold the judges' normaliser"):
        again.restore(4)


def test_an_actor_scores_by_the_fitted_judge_where_it_is_asked_to_and_evaluations_by_the_first(judge, tmp_path):
    made, *_ = refresher(judge, tmp_path)
    made(2, 2)
    texts = ["sun sun sun", "rain rain rain"]
    with_annotator, without = recipe_of(judge).objectives
    actor = RewardActor((with_annotator,))
    fitted = tmp_path / "judges/step-000002"
    first = actor.score(texts, texts, "reward", fitted=fitted)[:, 0]
    now, once_more = (actor.score(texts, texts, "current", fitted=folder)[:, 0] for folder in (fitted, None))
    assert first[1] > first[0] and now[0] > now[1] and (once_more == first).all()
    assert actor.score(texts, texts, "annotator").tolist() == [[3.0], [0.0]]
    assert np.isnan(RewardActor((without,)).score(texts, texts, "annotator")).all()
