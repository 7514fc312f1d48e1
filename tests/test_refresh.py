"""Judges fitted further to annotators: what is learned from, carried over, and had again by a run that goes on."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.reward import RewardActor
from actors.types import GenerationRequest, Response, Rollout
from orchestrator.errors import BadInput, RunFailed
from orchestrator.recipes import load_recipe
from orchestrator.run.batching import RequestBatch, ScoredBatch
from orchestrator.run.refresh import NORMALIZER, Refresher, carried_over, comparisons
from orchestrator.run.rundir import RunDir
from orchestrator.run.sampling import Scored
from orchestrator.tasks.fitting.bradley_terry import fit_reward
from orchestrator.tasks.fitting.config import Architecture, ByteLevelBPE, Optimization, RewardFitConfig
from orchestrator.tasks.fitting.refitting import Refit, seen_of
from rewards.judge_sections import HuggingFaceScorerConfig, refreshed
from rewards.judges import build_scorer
from rewards.normalize import Normalizer
from rewards.prompts import Prompt
from rewards.scorers import ScorerError

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
    rollouts, nothing = [answers("a", "b", "c", "d")], np.zeros((1, 4))
    told = np.array([[2.0, 1.0, 1.0, math.nan]])
    rows = [row for row, _ in comparisons(rollouts, told, nothing, sharpness=None)]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("a", "b"), ("a", "c")]
    assert {row["prompt"] for row in rows} == {"why?"} and {row["probability"] for row in rows} == {1.0}
    (row, _), _ = comparisons(rollouts, -told, nothing, sharpness=3.0)
    assert (row["chosen"], row["probability"]) == ("b", pytest.approx(1 / (1 + math.exp(-3))))
    assert list(comparisons([answers("same", "same")], np.array([[2.0, 1.0]]), nothing, sharpness=None)) == []


def test_a_judge_agrees_where_it_ranks_as_its_annotator_does_and_a_tie_or_silence_is_no_agreement():
    told = np.array([[4.0, 3.0, 2.0, 1.0]])
    judged = np.array([[5.0, 1.0, 1.0, math.nan]])
    found = comparisons([answers("a", "b", "c", "d")], told, judged, sharpness=None)
    assert [agrees for _, agrees in found] == [True, True, False, False, False, False]


def test_answers_keep_mean_and_spread_when_their_judge_shifts_and_stretches_its_scores():
    before = Normalizer(objectives=("a", "b"), mean=(1.0, 0.0), std=(2.0, 1.0), quantiles=((0.0, -1.0), (3.0, 1.0)))
    old = np.random.default_rng(0).normal(size=(5, 4, 1))
    new = 3 * old - 7
    new[0, 0] = math.nan
    after = carried_over(before, [0], old, new)
    both, now = np.concatenate([old, old], -1), np.concatenate([new, old], -1)
    assert after.apply(now[1:]) == pytest.approx(before.apply(both[1:]))
    assert np.array(after.quantiles) == pytest.approx(np.array([[-7.0, -1.0], [2.0, 1.0]]))
    assert carried_over(before, [1], np.ones((2, 2, 1)), np.zeros((2, 2, 1))) == before
    with pytest.raises(RunFailed, match="objective 'a': its judge, fitted further, gave 0 of 20 answers a score"):
        carried_over(before, [0], old, np.full_like(new, math.nan))


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
    with pytest.raises(BadInput, match=r"refresh\.every must be below loop\.steps = 5, or none is due, got 5"):
        overridden(sun, every, "loop.steps=5")


# a refresh


class FakeSampler:
    """Answers at random, has the annotator `sunny` and the judges that it is told of."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.fitted = None
        self.asked = 0
        self.silent = False

    def sample(self, requests, policy_version, *, judges=("reward",), temperature=None, arrived=None):
        assert judges == ()
        return Scored(rollouts=tuple(self._answer(request) for request in requests), scores={}, seconds={})

    def logprobs(self, prompt_ids, response_ids):
        raise AssertionError("nobody asks")

    def use_judges(self, fitted):
        self.fitted = fitted

    def score(self, rollouts, judge, objectives, *, timeout_s):
        """[B, N, 1]"""
        assert tuple(objectives) == ("helpfulness",), "the other objective has no annotator, and its judge stays"
        texts = [response.text for rollout in rollouts for response in rollout.responses]
        if judge == "annotator":
            self.asked += len(texts)
            scores = np.array(sunny(texts, texts)) * (math.nan if self.silent else 1)
        else:
            config = self.scorer if self.fitted is None else refreshed("helpfulness", self.scorer, self.fitted)
            scores = build_scorer(config).score(texts, texts)
        return scores.reshape(len(rollouts), -1, 1)

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
    made, sampler, said = refresher(judge, tmp_path)
    assert [step for step in range(7) if made.is_due(step)] == [2, 4, 6]
    first = made(2, 2)
    assert first.labels == len((tmp_path / "judges/step-000002/pairs-helpfulness.jsonl").read_text().splitlines())
    assert first.generated_tokens == 80 and first.accuracy["helpfulness"] < 0.7 and sampler.asked == 80
    assert first.normalizer.mean[1] == 0.0, "of an objective without an annotator nothing changes"
    second = made(4, 4)
    assert second.accuracy["helpfulness"] > 0.8 and "before step 5: helpfulness ranked" in said[-1]

    again, other, _ = refresher(judge, tmp_path)
    assert again.restore(2).mean == (0.0, 0.0) and other.fitted is None, "the refresh before step 3 is made again"
    assert again.restore(4) == again.restore(3) == first.normalizer
    assert other.fitted == tmp_path / "judges/step-000002"
    weights = (tmp_path / "judges/step-000004/helpfulness/model.safetensors").read_bytes()
    assert again(4, 4) == second and other.asked == 0, "what annotators said is not asked again"
    assert (tmp_path / "judges/step-000004/helpfulness/model.safetensors").read_bytes() == weights

    RunDir(tmp_path).rewind(3)
    assert [path.name for path in (tmp_path / "judges").iterdir()] == ["step-000002"]
    (tmp_path / "judges/step-000002" / NORMALIZER).write_text("{}")
    with pytest.raises(BadInput, match=r"step-000002/normalizer\.json: must hold the judges' normaliser"):
        again.restore(4)


def test_what_is_in_flight_is_scored_by_the_new_judges(judge, tmp_path):
    made, sampler, _ = refresher(judge, tmp_path)
    batch = RequestBatch(step=2, requests=(), preference_neg=np.zeros((1, 1, 2)))
    rollouts = (answers("sun sun", "rain rain"),)
    sampled = ScoredBatch(batch=batch, rollouts=rollouts, scores=np.array([[[9.0, 1.0], [9.0, 2.0]]]), seconds={})
    made(2, 2)
    rescored = made.rescored(sampled)
    expected = sampler.score(rollouts, "current", ("helpfulness",), timeout_s=1.0)
    assert (rescored.scores[..., :1] == expected).all() and rescored.scores[0, 0, 0] > rescored.scores[0, 1, 0]
    assert rescored.scores[..., 1].tolist() == [[1.0, 2.0]] and sampled.scores[0, 0, 0] == 9.0


def test_an_annotator_that_tells_nothing_apart_leaves_the_judge_as_it_is_and_the_run_goes_on(judge, tmp_path):
    made, sampler, said = refresher(judge, tmp_path)
    sampler.silent = True
    found = made(2, 2)
    assert found.labels == 0 and found.accuracy == {} and found.normalizer == made.restore(0)
    assert said[0] == "warning: the annotator of helpfulness told no two answers apart; its judge stays"
    same = (Path(judge.model) / "model.safetensors").read_bytes()
    assert (tmp_path / "judges/step-000002/helpfulness/model.safetensors").read_bytes() == same


def test_members_of_an_ensemble_see_prompts_of_their_own_the_same_whenever_they_are_fitted():
    rows = [{"prompt": f"p{n}", "step": step} for step in range(2) for n in range(40)]
    base = Refit(model="m", output=Path("o"), template="", max_length=8, pairs=(), share=0.5, drawn_by=1, seed=1)
    seen = [{row["prompt"] for row in seen_of(rows, replace(base, drawn_by=member))} for member in range(3)]
    assert all(10 < len(prompts) < 30 for prompts in seen) and len(set(map(frozenset, seen))) == 3
    assert seen[0] == {row["prompt"] for row in seen_of(rows[:40], replace(base, drawn_by=0, seed=9))}
    assert seen_of(rows, replace(base, share=1.0)) == rows


def test_models_that_no_checkpoint_goes_back_to_are_dropped_and_their_labels_kept(tmp_path):
    run_dir = RunDir(tmp_path)
    for step in (2, 4, 6):
        (run_dir.judges_path(step) / "helpfulness").mkdir(parents=True)
        (run_dir.judges_path(step) / "pairs-helpfulness.jsonl").touch()
    run_dir.drop_judges(6)
    left = sorted(str(path.relative_to(tmp_path / "judges")) for path in (tmp_path / "judges").rglob("helpfulness"))
    assert left == ["step-000004/helpfulness", "step-000006/helpfulness"]
    assert len(list((tmp_path / "judges").rglob("pairs-*"))) == 3


@pytest.mark.ray
def test_an_actor_scores_by_the_fitted_judge_where_it_is_asked_to_and_evaluations_by_the_first(
    ray_cluster, judge, tmp_path
):
    """An actor tells its metrics to the cluster that its process has joined, and looks for one where it has not."""
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
    with pytest.raises(ScorerError, match="objective 'harmlessness' has no annotator judge"):
        RewardActor((without,)).score(texts, texts, "annotator")
