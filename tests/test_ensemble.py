"""Several judges of one thing: what they disagree about counts less, on one scale, wherever judges are looked at."""

import json

import numpy as np
import pytest

from orchestrator.estimate.memory import judge_memory
from orchestrator.inputs import check_unbuilt
from orchestrator.recipes import load_recipe
from orchestrator.tasks.smoke import smoke_recipe
from orchestrator.tasks.teaching.teach import judges_within, taught_from
from rewards.config import ObjectiveConfig
from rewards.ensemble import SCALE_FILE, combine, scales_of, write_scale
from rewards.judge_sections import EnsembleScorerConfig
from rewards.judges import build_scorer, check_scorer
from rewards.scorers import ScorerError
from tests.test_estimate import RECIPES


def words(prompts, responses):
    return [float(len(response.split())) for response in responses]


def letters(prompts, responses):
    return [float(len(response)) if response else None for response in responses]


def ensemble(*functions: str, **settings) -> EnsembleScorerConfig:
    members = [{"type": "python", "function": f"{__name__}:{name}"} for name in functions]
    return EnsembleScorerConfig.model_validate({"members": members, **settings})


def test_the_mean_less_the_members_spread_or_the_least_of_them():
    scores_MN = np.array([[1.0, 5.0], [3.0, 5.0]])
    assert combine(scores_MN, rule="lower", c=1.0).tolist() == [2 - 1, 5]
    assert combine(scores_MN, rule="lower", c=0.0).tolist() == [2, 5]
    assert combine(scores_MN, rule="least", c=9.0).tolist() == [1, 5]
    assert np.isnan(combine(np.array([[np.nan], [1.0]]), rule="least", c=0)).all()


def test_members_score_what_they_are_given_and_a_missing_score_of_one_is_missing():
    scores = build_scorer(ensemble("words", "letters", rule="least")).score(["q", "q"], ["a bee", ""])
    assert scores[0] == 2.0 and np.isnan(scores[1])


def judge(folder, name: str, scale: dict | None, **settings):
    path = folder / name
    path.mkdir()
    if scale is not None:
        (path / SCALE_FILE).write_text(json.dumps(scale))
    return {"type": "huggingface", "model": str(path), **settings}


def test_fitted_members_are_brought_to_one_scale(tmp_path):
    members = [
        judge(tmp_path, "a", {"mean": 4.0, "std": 2.0}),
        judge(tmp_path, "b", {"mean": 4.0, "std": 2.0}, negate=True),
    ]
    scales = scales_of(EnsembleScorerConfig.model_validate({"members": members}))
    assert [(scale.mean, scale.std) for scale in scales] == [(4.0, 2.0), (-4.0, 2.0)]
    assert [(scale.mean, scale.std) for scale in scales_of(ensemble("words", "letters"))] == [(0, 1), (0, 1)]
    mixed = EnsembleScorerConfig.model_validate({"members": [*members, judge(tmp_path, "c", None)]})
    with pytest.raises(ScorerError, match=r"members must all hold reward_scale.json.*members\.2 has none"):
        scales_of(mixed)


@pytest.mark.parametrize(
    "scale", [{"mean": 0}, {"mean": 0, "std": 0}, {"mean": "x", "std": 1}, {"mean": 1e999, "std": 1}]
)
def test_a_broken_scale_is_named(tmp_path, scale):
    member = judge(tmp_path, "a", scale)
    with pytest.raises(ScorerError, match=SCALE_FILE):
        scales_of(EnsembleScorerConfig.model_validate({"members": [member, member]}))


def test_a_scale_is_that_of_the_scores_and_none_where_they_do_not_differ(tmp_path):
    write_scale(tmp_path, np.array([1.0, 3.0]))
    assert json.loads((tmp_path / SCALE_FILE).read_text()) == {"mean": 2.0, "std": 1.0}
    (tmp_path / SCALE_FILE).unlink()
    write_scale(tmp_path, np.array([1.0, 1.0]))
    assert not (tmp_path / SCALE_FILE).exists()


def test_what_is_wrong_with_a_member_is_named_by_its_place():
    problems = check_scorer(ensemble("words", "nothing"), "objectives.0.scorer")
    assert len(problems) == 1 and problems[0].startswith("objectives.0.scorer.members.1.function: ")
    with pytest.raises(ValueError, match="members"):
        ensemble("words")


def test_whatever_looks_at_judges_looks_at_the_members(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def short(prompts, responses): return [1.0 for _ in responses]")
    members = (
        "[{type: python, function: 'own.py:short', columns: [answer]}, "
        "{type: huggingface, model: '{assets}/rewards/a'}, {type: huggingface, model: '{assets}/rewards/b'}]"
    )
    recipe = load_recipe(
        RECIPES / "smollm2.yaml", [f"objectives.0.scorer={{type: ensemble, members: {members}}}", "data.train=x.jsonl"]
    )
    assert recipe.columns == ("answer",) and "own.py:short" in recipe.reaches_outside()
    assert list(taught_from(recipe)["functions"]) == ["own.py"]
    moved = judges_within(tmp_path / "building", recipe)["depth"]
    assert isinstance(moved, EnsembleScorerConfig)
    assert [getattr(member, "model", None) for member in moved.members] == [
        None,
        *(str(tmp_path / "building" / "rewards" / name) for name in "ab"),
    ]
    assert judge_memory(recipe.objectives[0]).held == 0  # of what is not there yet
    with pytest.raises(Exception, match=r"x\.jsonl"):
        check_unbuilt(recipe)


def test_a_member_on_a_gpu_needs_one():
    on_gpu = {"type": "huggingface", "model": "m", "device": "cuda"}
    with pytest.raises(ValueError, match=r"num_gpus must be above 0 where scorer\.device is cuda"):
        ObjectiveConfig.model_validate({"name": "a", "scorer": {"type": "ensemble", "members": [on_gpu, on_gpu]}})


def test_smoke_makes_a_small_judge_of_every_member(tmp_path):
    model = "Ray2333/gpt2-large-harmless-reward_model"
    members = f"[{{type: huggingface, model: {model}}}, {{type: huggingface, model: {model}}}, {{type: http, url: 'http://h'}}]"
    recipe = load_recipe(
        RECIPES / "helpful-qwen3-8b.yaml", [f"objectives.0.scorer={{type: ensemble, members: {members}}}"]
    )
    small = smoke_recipe(recipe, tmp_path / "smoke").objectives[0].scorer
    assert isinstance(small, EnsembleScorerConfig)
    first, second, server = small.members
    assert first != second and server.type == "python"
    assert np.isfinite(build_scorer(small).score(["How?"], ["Like this."])).all()
