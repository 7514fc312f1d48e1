"""A whole build at a size that takes seconds; what it learns at full size is not for a unit test."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, RunFailed
from orchestrator.tasks.assets import MANIFEST, file_digests
from orchestrator.tasks.miniature.build import build_miniature
from orchestrator.tasks.miniature.spec import LEVELS, GateSpec, MiniatureSpec, PolicySpec, RewardSpec

TINY = MiniatureSpec(
    policy=PolicySpec(steps={2: 40}, batch_size=32, learning_rate=1e-2),
    reward=RewardSpec(num_prompts=24, responses_per_prompt=4, steps=2, prompts_per_step=4, members=2),
    gate=GateSpec(min_spearman=-1.0, prompts=2, samples=1),
)
OBJECTIVES = ("helpfulness", "harmlessness")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_miniature(tmp_path_factory.mktemp("miniature") / "k2", spec=TINY)


def test_the_parts_are_where_a_recipe_looks_for_them(built):
    assert (built.directory / "policy" / "config.json").is_file()
    assert list(built.rewards) == list(OBJECTIVES)
    assert built.rewards["helpfulness"] == built.directory / "rewards" / "helpfulness"
    for file, count in ((built.train_prompts, 672), (built.heldout_prompts, 96)):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert set(rows[0]) == {"prompt"}


def test_the_policy_is_the_documented_llama(built):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = AutoModelForCausalLM.from_pretrained(built.policy)
    assert type(policy).__name__ == "LlamaForCausalLM"
    assert policy.num_parameters() == 117_248
    assert policy.config.head_dim == 32
    assert policy.config.eos_token_id == AutoTokenizer.from_pretrained(built.policy).eos_token_id


def test_the_reward_models_score_as_a_recipe_would_ask_them(built):
    import numpy as np

    from rewards.judge_sections import HuggingFaceScorerConfig
    from rewards.judges import build_scorer

    config = HuggingFaceScorerConfig(
        model=str(built.rewards["harmlessness"]), template="{prompt} Assistant: {response}"
    )
    scores = build_scorer(config).score(
        ["how do i pick the lock for my boss ?"] * 2, ["check the law first .", "first get the wire ."]
    )
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]


def test_a_second_build_returns_at_once_and_touches_nothing(built):
    before = (built.directory / MANIFEST).stat().st_mtime_ns
    again = build_miniature(built.directory, spec=TINY)
    assert (again.directory / MANIFEST).stat().st_mtime_ns == before
    assert again == built


def test_the_manifest_reports_what_was_measured(built):
    assert set(built.report["policy"]["spearman"]) == set(built.report["rewards"]) == set(OBJECTIVES)
    assert set(built.report["seconds"]) == {"policy", "responses", "rewards"}


def test_the_members_of_an_ensemble_saw_half_of_the_pairs_each_and_became_others(built):
    weights = set()
    for name in OBJECTIVES:
        whole, members = built.report["rewards"][name], built.report["members"][name]
        assert [member["pairs"] < 0.7 * whole["pairs"] for member in members] == [True, True]
        for folder in (built.rewards[name], *built.members[name]):
            assert (folder / "reward_scale.json").is_file()
            weights.add((folder / "model.safetensors").read_bytes())
    assert len(weights) == 6


def test_a_damaged_file_is_noticed_and_the_same_seed_builds_the_same_bytes_again(built, tmp_path):
    copy = Path(shutil.copytree(built.directory, tmp_path / "copy"))
    damaged = copy / "rewards" / "helpfulness" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    said: list[str] = []
    build_miniature(copy, spec=TINY, progress=said.append)
    assert any("rewards/helpfulness/model.safetensors is damaged" in line for line in said)
    assert file_digests(copy) == file_digests(built.directory)


def test_another_seed_starts_from_other_weights_and_holds_out_other_prompts():
    from orchestrator.tasks.miniature import grammar
    from orchestrator.tasks.miniature.fits import new_policy
    from orchestrator.tasks.miniature.grammar import build_tokenizer

    first, again, other = (new_policy(PolicySpec(), build_tokenizer(), seed).state_dict() for seed in (0, 0, 1))
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["model.embed_tokens.weight"].equal(other["model.embed_tokens.weight"])
    assert grammar.split_prompts(0) != grammar.split_prompts(1)


def test_the_level_tokens_start_on_a_line():
    import torch

    from orchestrator.tasks.miniature.fits import new_policy
    from orchestrator.tasks.miniature.grammar import build_tokenizer

    tokenizer = build_tokenizer()
    embedding = new_policy(PolicySpec(), tokenizer, 0).get_input_embeddings().weight.detach()
    levels = embedding[tokenizer.convert_tokens_to_ids(list(LEVELS))]
    direction = levels[-1] - levels[0]
    along = levels @ direction / direction.norm()
    assert (along.diff() > 0).all()
    assert torch.corrcoef(torch.stack([along, torch.arange(11.0)]))[0, 1] > 0.98


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds files but no manifest\.json"):
        build_miniature(tmp_path, spec=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("objectives", [("helpfulness",), ("helpfulness", "wit"), ("humor", "humor")])
def test_objectives_it_does_not_have_are_refused(objectives, tmp_path):
    with pytest.raises(BadInput, match="objectives"):
        build_miniature(tmp_path / "new", objectives=objectives, spec=TINY)
    assert not any(tmp_path.iterdir())


def test_a_policy_that_cannot_read_its_weights_ends_the_build(tmp_path):
    hopeless = MiniatureSpec(
        policy=PolicySpec(steps={2: 1}, batch_size=2),
        gate=GateSpec(min_spearman=0.99, prompts=2, samples=1, extra_fits=1),
    )
    said: list[str] = []
    with pytest.raises(RunFailed, match=r"rank correlation >= 0\.99"):
        build_miniature(tmp_path / "new", spec=hopeless, progress=said.append)
    assert any("fitting again for longer" in line for line in said)
    assert not (tmp_path / "new").exists()
