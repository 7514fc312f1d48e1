"""Trained and served sampling are the same, whatever a policy's folder recommends; and such a folder can be saved."""

import json
import shutil

import pytest
import torch
import yaml

from actors.config import RolloutConfig
from learner.methods import METHODS
from learner.policy import check_settings, save_policy_folder
from learner.types import LearnerError
from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.recipes import load_recipe
from orchestrator.run.speaker import Speaker
from orchestrator.run.steering import PolicyConditioning, load_conditioning, save_conditioning
from rewards.config import PreferencesConfig
from rewards.sampling import read_token_ids
from tests.test_plan_and_cli import MINIATURE, recipe_tree
from tests.tiny_models import make_tiny_policy

RECOMMENDED = {
    "do_sample": True, "top_p": 0.8, "top_k": 3, "min_p": 0.2, "repetition_penalty": 5.0, "temperature": 0.2,
    "no_repeat_ngram_size": 1, "suppress_tokens": [20, 21], "eos_token_id": [1, 7], "pad_token_id": 0,
}  # fmt: skip
UNLAWFUL = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 1, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture
def policy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "policy")


def recommend(policy, values):
    (policy / "generation_config.json").write_text(json.dumps(values))


def told(policy, name="generation_config.json"):
    return json.loads((policy / name).read_text())


def steer(policy, **values):
    record = PolicyConditioning(objectives=("a", "b"), preferences=PreferencesConfig(), max_new_tokens=16, **values)
    (policy / "mi_epo.json").write_text(record.model_dump_json())


def answers(policy, seed=0, n=4):
    return Speaker(policy, seed=seed).answers("t20 t21", [0.5, 0.5], n)


def test_a_trained_policy_s_folder_says_how_it_was_sampled_in_training(policy):
    recommend(policy, RECOMMENDED)
    save_conditioning(policy, load_recipe(MINIATURE, ["rollout.temperature=0.7", "rollout.top_p=0.9"]))
    sampled = {"max_new_tokens": 32, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    assert told(policy) == {"do_sample": True, **sampled, "eos_token_id": [1, 7], "pad_token_id": 0}
    assert sampled.items() <= told(policy, "mi_epo.json").items()
    assert load_conditioning(policy).values() == RolloutConfig(temperature=0.7, top_p=0.9).values()


def test_what_is_written_keeps_transformers_own_rules(policy, tmp_path):
    from transformers import AutoModelForCausalLM, GenerationConfig

    recommend(policy, UNLAWFUL)
    for override in ("rollout.temperature=0.7", "rollout.temperature=0"):
        save_conditioning(policy, load_recipe(MINIATURE, ["method=ric", override]))
        GenerationConfig.from_pretrained(policy).save_pretrained(tmp_path / "again")
        AutoModelForCausalLM.from_pretrained(policy).save_pretrained(tmp_path / "again")


def test_a_folder_without_generation_config_gets_the_ends_of_its_configuration(policy):
    (policy / "generation_config.json").unlink()
    save_conditioning(policy, load_recipe(MINIATURE))
    assert (told(policy)["eos_token_id"], told(policy)["pad_token_id"]) == (1, 0)


@pytest.mark.parametrize("recommended", [RECOMMENDED | {"eos_token_id": 1}, UNLAWFUL])
@pytest.mark.parametrize("values", [{"temperature": 1.0}, {"temperature": 0.5, "top_p": 0.4}])
def test_generate_samples_as_in_training_whatever_the_folder_recommends(policy, recommended, values):
    steer(policy, **values)
    expected = answers(policy)
    recommend(policy, recommended)
    assert answers(policy) == expected


def test_generate_samples_with_the_nucleus_of_training(policy):
    steer(policy, temperature=1.0, top_p=1e-6)
    assert len(set(answers(policy))) == 1
    steer(policy, temperature=1.0)
    assert len(set(answers(policy))) > 1


def test_generate_is_greedy_for_a_policy_that_was_trained_greedily(policy):
    steer(policy, temperature=0)
    assert len({answer for seed in (0, 1) for answer in answers(policy, seed=seed)}) == 1


def test_a_record_without_top_p_is_one_of_the_whole_policy(policy):
    record = {"objectives": ["a", "b"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0}
    (policy / "mi_epo.json").write_text(json.dumps(record))
    assert load_conditioning(policy).top_p == 1
    (policy / "mi_epo.json").write_text(json.dumps(record | {"repetition_penalty": 5}))
    with pytest.raises(BadInput, match=r"mi_epo\.json: repetition_penalty: Input should be 1"):
        load_conditioning(policy)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_learner_saves_a_generation_configuration_as_it_is(policy, tmp_path):
    recommend(policy, UNLAWFUL)
    check_settings(str(policy), dtype=torch.float32)
    weights = {"lm_head.weight": torch.zeros(2, 2)}
    save_policy_folder(tmp_path / "saved", model=str(policy), weights=weights, dtype=torch.float32)
    assert told(tmp_path / "saved") == UNLAWFUL


def test_what_could_not_be_saved_at_the_end_is_refused_before_the_start(policy):
    (policy / "tokenizer.json").unlink()
    with pytest.raises(LearnerError, match=r"policy\.model: .* could not be saved"):
        check_settings(str(policy), dtype=torch.float32)


def fit(policy, output):
    rows = policy.parent / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "t20", "response": "t21"}) + "\n")
    config = {
        "data": str(rows), "output": str(output), "model": str(policy), "device": "cpu", "max_length": 64,
        "optimization": {"steps": 1, "batch_size": 1, "learning_rate": 0.001},
    }  # fmt: skip
    (policy.parent / "fit.yaml").write_text(yaml.safe_dump(config))
    return main(["fit-policy", str(policy.parent / "fit.yaml")])


def test_a_policy_is_fitted_and_saved_with_a_generation_configuration_that_breaks_the_rules(policy, tmp_path):
    from transformers import AutoModelForCausalLM

    recommend(policy, UNLAWFUL)
    assert fit(policy, tmp_path / "fitted") == 0
    assert UNLAWFUL.items() <= told(tmp_path / "fitted").items()
    AutoModelForCausalLM.from_pretrained(tmp_path / "fitted")
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert fit(tmp_path / "fitted", tmp_path / "again") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{oops", "generation_config.json: is not valid JSON"),
        ("[]", "generation_config.json: must hold a JSON object, got list"),
        ("[" * 100_000, "generation_config.json: is not valid JSON: nested too deep"),
        ('{"eos_token_id": 1, "eos_token_id": 2}', "the key 'eos_token_id' must stand once, stands 2 times"),
        ('{"eos_token_id": ["</s>"]}', "generation_config.json: eos_token_id must be a token id or a list of them"),
    ],
)
def test_a_generation_configuration_that_says_nothing_is_refused_by_plan(capsys, policy, text, said):
    (policy / "generation_config.json").write_text(text)
    for name in ("train", "heldout"):
        (policy.parent / f"{name}.jsonl").write_text('{"prompt": "t20"}\n')
    (policy.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree(policy.parent)))
    assert main(["plan", str(policy.parent / "recipe.yaml")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mi-epo: policy.model: ")
    assert said in line
    assert line.count("\n") == 1


def test_an_id_of_minus_one_is_none(policy):
    recommend(policy, {"pad_token_id": -1})
    (policy / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert read_token_ids(policy) == {"eos_token_id": 1}


# --- greedy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name, made in METHODS.items() if made.min_responses > 1])
def test_a_method_that_compares_answers_refuses_to_sample_them_greedily(method):
    said = f"method {method}: rollout.temperature must be above 0, as responses to a prompt must differ, got 0"
    with pytest.raises(BadInput, match=said):
        load_recipe(MINIATURE, [f"method={method}", "rollout.temperature=0"])


def test_a_method_that_needs_one_answer_may_be_trained_greedily():
    assert load_recipe(MINIATURE, ["method=ric", "rollout.temperature=0"]).rollout.temperature == 0


def test_a_temperature_that_vllm_would_raise_is_refused():
    with pytest.raises(ValueError, match=r"must be 0 or at least 0\.01, as vLLM draws no colder, got 0\.001"):
        RolloutConfig(temperature=0.001)
