"""The recipe's objectives and preferences: what is accepted, what is refused and with which words."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from rewards.config import ConditioningConfig, ObjectiveConfig, PreferencesConfig
from rewards.judge_sections import HTTPScorerConfig, HuggingFaceScorerConfig, PythonScorerConfig, ScorerConfig


def problem(section, **values):
    with pytest.raises(ValidationError) as caught:
        section(**values)
    return str(caught.value)


def test_the_type_key_chooses_the_scorer():
    adapter = TypeAdapter(ScorerConfig)
    assert isinstance(adapter.validate_python({"type": "huggingface", "model": "./rm"}), HuggingFaceScorerConfig)
    assert isinstance(adapter.validate_python({"type": "python", "function": "a.b:c"}), PythonScorerConfig)
    assert isinstance(adapter.validate_python({"type": "http", "url": "http://rm:8000/score"}), HTTPScorerConfig)
    with pytest.raises(ValidationError, match="telepathy"):
        adapter.validate_python({"type": "telepathy"})


@pytest.mark.parametrize("role", ["scorer", "audit"])
def test_a_judge_on_a_gpu_needs_one_that_is_reserved(role):
    function = PythonScorerConfig(function="rewards.functions:brevity")
    judges = {"scorer": function, role: HuggingFaceScorerConfig(model="m", device="cuda")}
    assert f"num_gpus must be above 0 where {role}.device is cuda, got 0" in problem(
        ObjectiveConfig, name="a", **judges
    )
    assert ObjectiveConfig(name="a", num_gpus=0.1, **judges).num_gpus == 0.1


def test_unknown_keys_and_changes_after_reading_are_refused():
    assert "modle" in problem(HuggingFaceScorerConfig, modle="x")
    config = PreferencesConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.alpha = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("template", ["{prompt} only", "{response} {response}", "{prompt} {prompt} {response}"])
def test_a_classifier_template_holds_the_response_once(template):
    assert "exactly once" in problem(
        HuggingFaceScorerConfig, model="x", template=template
    ) or "at most once" in problem(HuggingFaceScorerConfig, model="x", template=template)


def test_a_classifier_template_may_leave_the_prompt_out():
    assert HuggingFaceScorerConfig(model="x", template="{response}").template == "{response}"


@pytest.mark.parametrize(
    "url",
    [
        *("rm:8000", "ftp://rm/score", "http://", "/score"),
        *("http://a..b/", f"http://{'a' * 64}/", "http://rm:99999/", "http://rm:port/"),
    ],
)
def test_a_server_needs_an_http_url(url):
    assert repr(url) in problem(HTTPScorerConfig, url=url)


def test_a_password_in_a_url_is_refused_and_not_repeated_by_the_rule():
    assert "token_env" in problem(HTTPScorerConfig, url="https://me:secret@rm/score")


@pytest.mark.parametrize("function", ["module.function", "a b:c", ":f", "module:"])
def test_a_function_is_named_as_module_and_name(function):
    assert "pattern" in problem(PythonScorerConfig, function=function)


@pytest.mark.parametrize("name", ["Helpful", "1st", "a b", "<x>", ""])
def test_objective_names_are_plain(name):
    assert "name" in problem(ObjectiveConfig, name=name, scorer={"type": "python", "function": "m:f"})


def test_numbers_that_are_no_numbers_are_refused():
    assert "finite" in problem(PreferencesConfig, alpha=float("nan"))
    assert "greater than 0" in problem(PreferencesConfig, alpha=0)
    assert "less than or equal to 3" in problem(PreferencesConfig, decimals=4)


def test_the_default_template_follows_the_style():
    assert ConditioningConfig().template == "Human: {prompt} {weights} Assistant:"
    assert ConditioningConfig(style="chat").template == "{prompt} {weights}"
    assert ConditioningConfig(style="chat", system="Be {weights}").template == "{prompt}"


def test_a_written_out_section_reads_back_the_same():
    for config in (ConditioningConfig(), ConditioningConfig(style="chat", system="Follow {weights}.")):
        assert ConditioningConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"template": "{prompt}"}, "must contain {weights} exactly once"),
        ({"template": "{weights} {prompt} {weights}"}, "must contain {weights} exactly once"),
        ({"template": "{weights}"}, "must contain {prompt} exactly once"),
        ({"weight": "{weight}"}, "must contain {name} exactly once"),
        ({"weight": "{repeated}"}, None),
        ({"weight": "{name} {repeated}"}, "must contain {repeated} once, without {name} and {weight}"),
        ({"weight": "{repeated}{repeated}"}, "must contain {repeated} once"),
        ({"system": "hello"}, "style 'chat' only"),
        ({"style": "chat", "system": "{weights}", "template": "{prompt} "}, None),
    ],
)
def test_weights_stand_in_exactly_one_place(values, words):
    if words is None:
        ConditioningConfig(**values)
    else:
        assert words in problem(ConditioningConfig, **values)


def test_repeated_names_count_tenths_only():
    repeated = {"conditioning": {"weight": "{repeated}"}}
    assert PreferencesConfig.model_validate(repeated).decimals == 1
    words = "decimals must be 1 where conditioning.weight holds {repeated}, got 2"
    assert words in problem(PreferencesConfig, **repeated, decimals=2)


def test_sections_and_preferences_load_without_torch_or_transformers():
    code = "import sys, rewards.config, rewards.preferences; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
