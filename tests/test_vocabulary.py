"""Tokens that were added to a tokenizer whose model was not resized: refused where they can be met, by name and id."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.tasks.fitting.bradley_terry import fit_reward
from orchestrator.tasks.fitting.config import Optimization, PolicyFitConfig, RewardFitConfig
from orchestrator.tasks.fitting.supervised import fit_policy
from rewards.judge_sections import HuggingFaceScorerConfig
from rewards.judges import build_scorer
from rewards.model_files import ModelError
from rewards.pretrained import load_tokenizer
from rewards.vocabulary import first_without_row
from tests.model_workplace import change_json, make_workplace, planned

RULE = "must have an embedding for every token (it has 100 rows), got '{token}' with id 100"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    return make_workplace(tmp_path)


def add_tokens(folder: Path, *tokens: str, special: bool = False) -> None:
    """Add tokens to the folder's tokenizer, and leave its model of 100 rows as it is."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("model", "place"), [("policy", "policy.model"), ("judge", "objectives.1.scorer.model")])
def test_an_added_token_without_a_row_is_refused_by_plan(capsys, workplace, model, place):
    add_tokens(workplace / model, "<more>")
    assert planned(capsys, workplace) == f"mi-epo: {place}: {workplace / model}: {RULE.format(token='<more>')}\n"


@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_padding_token_without_a_row_is_refused_by_plan(capsys, workplace, model):
    add_tokens(workplace / model, "[PAD]", special=True)
    assert planned(capsys, workplace) == ""
    change_json(workplace / model / "tokenizer_config.json", pad_token="[PAD]")
    assert RULE.format(token="[PAD]") in planned(capsys, workplace)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_padding_token_that_the_loader_itself_would_add_is_refused_by_plan(capsys, workplace, model, file):
    settings = workplace / model / "tokenizer_config.json"
    told = json.loads(settings.read_text())
    del told["pad_token"]
    settings.write_text(json.dumps(told))
    path = workplace / model / file
    path.write_text(json.dumps({**(told if path == settings else {}), "pad_token": "[PAD]"}))
    assert RULE.format(token="[PAD]") in planned(capsys, workplace)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [100, 2**40, [1, 100], -7])
def test_an_end_that_the_policy_has_no_row_for_is_refused(capsys, workplace, file, value):
    for name in ("config.json", "generation_config.json"):
        change_json(workplace / "policy" / name, eos_token_id=1)
    change_json(workplace / "policy" / file, eos_token_id=value)
    if file == "config.json":  # which counts less
        (workplace / "policy" / "generation_config.json").unlink()
    beyond = value[1] if isinstance(value, list) else value
    rule = f"eos_token_id must be below 100, the rows of the embedding, got {beyond}"
    assert planned(capsys, workplace) == f"mi-epo: policy.model: {workplace / 'policy'}: {rule}\n"


@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_vocabulary_that_is_larger_than_its_model_is_refused(capsys, workplace, model):
    path = workplace / model / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["word"] = 100
    path.write_text(json.dumps(tree))
    assert RULE.format(token="word") in planned(capsys, workplace)


def test_a_special_token_without_a_row_is_let_pass_until_a_text_holds_it(capsys, workplace):
    for model in ("policy", "judge"):
        add_tokens(workplace / model, "<image>", special=True)
    assert planned(capsys, workplace) == ""
    (workplace / "heldout.jsonl").write_text('{"prompt": "t20"}\n{"prompt": "t20 <image>"}\n')
    said = planned(capsys, workplace)
    assert "heldout.jsonl, prompt 2: policy.model " + RULE.format(token="<image>") in said


@pytest.mark.parametrize(
    ("key", "value", "token", "place"),
    [
        ("preferences.conditioning.template", "'<image> {prompt} {weights}'", "<image>", "preferences.conditioning"),
        (
            "preferences.conditioning.weight",
            "'{name} <{weight}>'",
            "<0.3>",
            "preferences.conditioning, weights [0.3, 0.7]",
        ),
        ("objectives.1.scorer.template", "'<image> {prompt} {response}'", "<image>", "objectives.1.scorer.model"),
    ],
)
def test_a_special_token_without_a_row_in_a_template_or_a_weight_is_refused(
    capsys, workplace, key, value, token, place
):
    for model in ("policy", "judge"):
        add_tokens(workplace / model, token, special=True)
    said = planned(capsys, workplace, f"{key}={value}")
    assert said.startswith(f"mi-epo: {place}") and RULE.format(token=token) in said


def test_a_text_with_such_a_token_has_no_score_and_the_others_have_theirs(workplace, caplog):
    add_tokens(workplace / "judge", "<image>", special=True)
    scorer = build_scorer(HuggingFaceScorerConfig(model=str(workplace / "judge"), device="cpu"))
    scores = scorer.score(["t20", "t20"], ["t21 <image>", "t21"])
    assert np.isnan(scores).tolist() == [True, False]
    assert RULE.format(token="<image>") in caplog.text


def begin(workplace: Path) -> dict[str, Any]:
    return {
        **{"model": str(workplace / "policy"), "output": str(workplace / "out"), "heldout_fraction": 0},
        "optimization": Optimization(steps=1, batch_size=1, learning_rate=0.1),
    }


@pytest.mark.parametrize("padded", [False, True])
def test_a_fit_is_refused_before_it_trains(workplace, padded):
    token = "[PAD]" if padded else "<more>"
    add_tokens(workplace / "policy", token, special=padded)
    if padded:
        change_json(workplace / "policy" / "tokenizer_config.json", pad_token="[PAD]")
    text = "t21" if padded else "t21 <more>"
    with pytest.raises(BadInput) as of_policy:
        fit_policy(PolicyFitConfig(**begin(workplace)), [{"prompt": "t20", "response": text}])
    with pytest.raises(BadInput) as of_reward:
        fit_reward(RewardFitConfig(**begin(workplace)), [{"prompt": "t20", "chosen": "t23", "rejected": text}])
    assert str(of_policy.value) == str(of_reward.value) == f"model: {RULE.format(token=token)}"
    assert not (workplace / "out").exists()


def test_a_prompt_with_such_a_token_gets_no_answer_but_a_reason(capsys, workplace):
    add_tokens(workplace / "policy", "<more>")
    steered = {"objectives": ["a", "b"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0}
    (workplace / "policy" / "mi_epo.json").write_text(json.dumps(steered))
    weights = ["--prefer", "a=1", "--prefer", "b=0"]
    assert main(["generate", str(workplace / "policy"), *weights, "--prompt", "t20 <more>"]) == 2
    assert capsys.readouterr().err == f"mi-epo: prompt: the policy {RULE.format(token='<more>')}\n"


@pytest.mark.parametrize("longest", ["128", [128], True])
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_longest_input_that_is_no_number_is_refused(capsys, workplace, model, longest):
    change_json(workplace / model / "tokenizer_config.json", model_max_length=longest)
    rule = f"model_max_length of the tokenizer must be a number, got {longest!r}"
    assert f"{workplace / model}: {rule}" in planned(capsys, workplace)
    with pytest.raises(ModelError, match=re.escape(rule)):
        load_tokenizer(str(workplace / model))


def test_ids_are_rows_from_zero_on():
    assert first_without_row([0, 99], 100) is None
    assert first_without_row([5, 100, 101], 100) == 100
    assert first_without_row([-1], 100) == -1
