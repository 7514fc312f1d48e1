"""How many tokens a model tells apart: what is longer is refused for a policy, and shortened for judges and fits."""

from pathlib import Path
from typing import Any

import pytest

from actors.config import RolloutConfig
from actors.engine import check_model
from orchestrator.tasks.fitting import models
from orchestrator.tasks.fitting.config import Optimization, RewardFitConfig
from rewards.classifier import ClassifierScorer
from rewards.judge_sections import HuggingFaceScorerConfig
from rewards.model_config import max_positions
from rewards.model_files import ModelError
from rewards.pretrained import positions_of
from tests.model_workplace import change_json, make_workplace, planned


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    return make_workplace(tmp_path)


def test_a_context_beyond_the_policys_positions_is_refused_by_plan(capsys, workplace):
    assert planned(capsys, workplace, "rollout.max_model_len=128") == ""
    rule = (
        f"rollout.max_model_len: must be at most 128, the positions of policy.model {str(workplace / 'policy')!r}, got "
    )
    assert planned(capsys, workplace, "rollout.max_model_len=129") == f"mi-epo: {rule}129\n"


def test_the_default_context_is_no_exception(capsys, workplace):
    path = workplace / "recipe.yaml"
    path.write_text(path.read_text().replace("  max_model_len: 64\n", ""))
    assert planned(capsys, workplace).endswith(", got 256\n")


def test_an_engine_says_it_in_the_recipes_words_where_only_its_class_knows_its_positions(workplace):
    config = workplace / "policy" / "config.json"
    change_json(config, max_position_embeddings=None)
    config.write_text(config.read_text().replace('"max_position_embeddings": null, ', ""))
    check_model(RolloutConfig(max_model_len=2048), str(workplace / "policy"))  # a Llama's default
    with pytest.raises(ModelError, match=r"^rollout\.max_model_len must be at most 2048, .* got 2049$"):
        check_model(RolloutConfig(max_model_len=2049), str(workplace / "policy"))


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024, "model_type": "gpt2"}, 1024),
        ({"text_config": {"max_position_embeddings": 2048}, "model_type": "x"}, 2048),
        ({"max_position_embeddings": 4096, "model_max_length": 8192}, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131_072),
        ({"max_position_embeddings": 40_960, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 40_960),
        ({"max_position_embeddings": 512, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, 512),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_positions_are_those_that_an_engine_would_find(config: dict[str, Any], positions: int | None):
    assert max_positions(config) == positions


def roberta(folder: Path) -> str:
    """A judge whose 20 positions begin behind its padding, at 2, with the words of the workplace's judge."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=100, max_position_embeddings=20, num_labels=1, pad_token_id=1, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def test_a_judge_reads_no_more_tokens_than_its_model_has_positions_for(workplace):
    judge = ClassifierScorer(HuggingFaceScorerConfig(model=str(workplace / "judge"), device="cpu"))
    assert judge.max_length == 128
    offset = ClassifierScorer(HuggingFaceScorerConfig(model=roberta(workplace / "judge"), device="cpu"))
    assert (positions_of(offset._model), offset.max_length) == (18, 18)


def test_a_fit_reads_no_more_either(workplace):
    begin = Optimization(steps=1, batch_size=1, learning_rate=0.1)
    config = RewardFitConfig(model=roberta(workplace / "judge"), output="out", optimization=begin, max_length=512)
    model = models.make_classifier(config, models.make_tokenizer(config, ()))
    assert models.within_positions(config, model).max_length == 18
    shorter = config.model_copy(update={"max_length": 10})
    assert models.within_positions(shorter, model) == shorter
