"""A checkpoint that lacks weights, or has others than its configuration says, is refused before anything trains."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.config import RolloutConfig
from actors.engine import check_model
from learner.config import LearnerConfig
from learner.policy import load_policy
from learner.types import LearnerError
from orchestrator.errors import BadInput
from orchestrator.estimate.shapes import model_shape
from orchestrator.tasks.fitting import models
from orchestrator.tasks.fitting.config import Optimization, PolicyFitConfig, RewardFitConfig
from rewards.judge_sections import HuggingFaceScorerConfig
from rewards.judges import build_scorer
from rewards.model_config import check_weights, read_config
from rewards.model_files import ModelError
from rewards.pretrained import load_model
from rewards.scorers import ScorerError
from tests.model_workplace import change_json, make_workplace, planned

Tensors = dict[str, torch.Tensor]
QUERY, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    return make_workplace(tmp_path)


def change_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_three(tensors: Tensors) -> None:
    for name in [QUERY, UP, "model.norm.weight"]:
        del tensors[name]


WRONG: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "three are missing": (lose_three, r"holds no trained weights for .*layers\.0\.mlp\.up_proj\.weight, .*q_proj"),
    "one has another shape": (
        lambda tensors: tensors.update({UP: torch.zeros(3, 4)}),
        r".*up_proj\.weight must have the shape \(192, 64\) of its configuration, got \(3, 4\)",
    ),
    "one has no place": (
        lambda tensors: tensors.update({UP.replace("weight", "bias"): torch.zeros(192)}),
        r"has weights that its class has no place for: .*layers\.0\.mlp\.up_proj\.bias",
    ),
    "one is of integers": (
        lambda tensors: tensors.update({UP: tensors[UP].to(torch.int64)}),
        r".*up_proj\.weight must be of real numbers \(F64, F32, F16, BF16\), got I64",
    ),
    "a layer too many": (
        lambda tensors: tensors.update({QUERY.replace("layers.1", "layers.2"): torch.zeros(64, 64)}),
        r"has weights that its class has no place for: .*layers\.2\.self_attn\.q_proj\.weight",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize(("model", "place"), [("policy", "policy.model"), ("judge", "objectives.1.scorer.model")])
def test_plan_compares_the_headers_of_the_files_with_the_configuration(capsys, workplace, model, place, case):
    change, rule = WRONG[case]
    change_weights(workplace / model, change)
    said = planned(capsys, workplace)
    assert said.startswith(f"mi-epo: {place}: {workplace / model}: ")
    with pytest.raises(ModelError, match=rule):
        check_weights(workplace / model, read_config(workplace / model), labels=None if model == "policy" else 1)


@pytest.mark.parametrize("case", [case for case in WRONG if "integers" not in case])
def test_learner_engine_judge_and_fit_refuse_what_transformers_would_fill_with_random_numbers(workplace, case):
    change, rule = WRONG[case]
    policy, judge = str(workplace / "policy"), str(workplace / "judge")
    for model in (policy, judge):
        change_weights(Path(model), change)
    with pytest.raises(LearnerError, match=f"^policy.model: '{policy}': {rule}"):
        load_policy(policy, LearnerConfig(learning_rate=1e-4), dtype=torch.float32)
    with pytest.raises(ModelError, match=f"^'{policy}': {rule}"):
        check_model(RolloutConfig(max_model_len=64), policy)
    with pytest.raises(ScorerError, match=f"^classifier: '{judge}': {rule}"):
        build_scorer(HuggingFaceScorerConfig(model=judge, device="cpu"))
    begin: dict[str, Any] = {
        "output": str(workplace / "out"), "optimization": Optimization(steps=1, batch_size=1, learning_rate=0.1)
    }  # fmt: skip
    with pytest.raises(BadInput, match=f"^model: '{policy}': {rule}"):
        models.make_policy(PolicyFitConfig(model=policy, **begin), None)
    with pytest.raises(BadInput, match=f"^model: '{policy}': {rule}"):
        models.make_classifier(RewardFitConfig(model=policy, **begin), None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_hidden_layers": 10**9}, "holds no trained weights for layers."),
        ({"hidden_size": float("inf")}, "config.json: hidden_size must be a whole number of at least 1, got inf"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads must be a whole number of at least 1, got 0"),
        ({"vocab_size": "many"}, "config.json: vocab_size must be a whole number of at least 1, got 'many'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("nan")}}, "cannot be scaled by a factor of nan"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("inf")}}, "cannot be scaled by a factor of inf"),
    ],
)
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_size_that_is_none_is_refused_and_no_number_of_layers_is_believed(capsys, workplace, model, values, said):
    change_json(workplace / model / "config.json", **values)
    assert said in planned(capsys, workplace)


@pytest.mark.parametrize("values", [{"num_attention_heads": 0}, {"hidden_size": float("inf")}])
def test_a_shape_that_cannot_be_known_is_none(workplace, values):
    change_json(workplace / "policy" / "config.json", **values)
    assert model_shape(str(workplace / "policy")) is None


def test_a_gpt2_of_a_billion_layers_is_refused_as_soon_as_one_is_missing(tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(small("gpt2")).save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", n_layer=10**9)
    with pytest.raises(ModelError, match=r"holds no trained weights for h\.2\."):
        check_weights(tmp_path, read_config(tmp_path), labels=None)


def test_a_name_in_the_place_of_a_list_of_classes_is_refused(capsys, workplace):
    change_json(workplace / "judge" / "config.json", architectures="LlamaForSequenceClassification")
    assert "architectures must be a list of names, got 'LlamaForSequenceClassification'" in planned(capsys, workplace)


def test_a_head_may_be_new_only_where_a_fit_makes_one(workplace):
    policy = str(workplace / "policy")
    assert load_model("AutoModelForSequenceClassification", policy, head="new").config.num_labels == 2
    with pytest.raises(ModelError, match=r"holds no trained weights for score\.weight"):
        load_model("AutoModelForSequenceClassification", policy, head="judge")


def test_an_output_layer_of_its_own_must_be_there(capsys, workplace):
    change_json(workplace / "policy" / "config.json", tie_word_embeddings=False)
    assert "holds no trained weights for lm_head.weight" in planned(capsys, workplace)


@pytest.mark.parametrize(
    ("lm_head", "told"),
    [
        (lambda embedding: embedding.clone(), ""),
        (lambda embedding: embedding + 1, "lm_head.weight is embed_tokens.weight, the files hold another one\n"),
        (lambda embedding: torch.zeros(3, 4), "lm_head.weight is embed_tokens.weight, the files hold another one\n"),
    ],
)
def test_a_tied_output_layer_in_the_files_must_be_the_embedding(capsys, workplace, lm_head, told):
    change_weights(
        workplace / "policy",
        lambda tensors: tensors.update({"lm_head.weight": lm_head(tensors["model.embed_tokens.weight"])}),
    )
    assert planned(capsys, workplace).endswith(told)


WRONG_SCORE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "none": (lambda tensors: tensors.pop("score.weight"), "holds no trained weights for score.weight"),
    "one label of two": (
        lambda tensors: tensors.update({"score.weight": torch.zeros(2, 64)}),
        "score.weight must have the shape (1, 64) of its configuration, got (2, 64)",
    ),
    "a bias": (
        lambda tensors: tensors.update({"score.bias": torch.zeros(1)}),
        "has weights that its class has no place for: score.bias",
    ),
}


@pytest.mark.parametrize("case", WRONG_SCORE)
def test_the_last_layer_of_a_judge_must_be_what_its_configuration_says(capsys, workplace, case):
    change, told = WRONG_SCORE[case]
    change_weights(workplace / "judge", change)
    assert told in planned(capsys, workplace)


def test_a_last_layer_of_a_name_that_no_file_holds_is_refused(capsys, workplace):
    said = planned(capsys, workplace, "objectives.1.scorer.head=nosuch")
    assert "holds no trained weights for nosuch.weight" in said


def small(kind: str, **more: Any) -> Any:
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}
    return AutoConfig.for_model(kind, vocab_size=50, **sizes, **more)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {"num_key_value_heads": 2}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 16, "attention_bias": True}),
        ("gpt2", {}),
        ("gpt_neox", {}),
    ],
)
def test_models_of_every_kind_that_transformers_saves_are_whole(tmp_path, kind, more, tied):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = small(kind, tie_word_embeddings=tied, **more)
    for loader, labels in ((AutoModelForCausalLM, None), (AutoModelForSequenceClassification, 2)):
        loader.from_config(config).save_pretrained(tmp_path)
        check_weights(tmp_path, read_config(tmp_path), labels=labels)
        load_model(loader.__name__, str(tmp_path), head="whole", device_map="meta")
        shutil.rmtree(tmp_path)


def test_buffers_that_old_checkpoints_keep_are_no_weights(capsys, workplace):
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    for model in ("policy", "judge"):
        change_weights(workplace / model, lambda tensors: tensors.update(buffers))
    assert planned(capsys, workplace) == ""
    load_model("AutoModelForCausalLM", str(workplace / "policy"), head="whole")
