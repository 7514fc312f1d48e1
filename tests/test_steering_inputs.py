"""w must be read in every prompt: chat templates that refuse, drop or cut it, and tokenizers without its digits."""

import json
import shutil

import pytest
import yaml

from orchestrator.cli import explain, main
from orchestrator.errors import BadInput
from rewards.config import ConditioningConfig
from rewards.preferences import PromptRenderer
from rewards.pretrained import load_tokenizer
from rewards.simplex import PreferenceError
from tests.tiny_models import make_tiny_policy
from tests.word_tokenizer import WordTokenizer

TURNS = "{% for message in messages %}{{ message['content'] }} {% endfor %}Assistant:"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}" + TURNS
DROPS_SYSTEM = "{% for message in messages if message['role'] != 'system' %}{{ message['content'] }} {% endfor %}"
CUTS = "{% for message in messages %}{{ message['content'][:60] }} {% endfor %}Assistant:"
CUTS_AT_A_WORD = "{{ messages[0]['content'].split('[INST]')[0] }} Assistant:"
THINKS = TURNS + "{% generation %}{% if thinking is defined and thinking %} <think>{% endif %}{% endgeneration %}"
IN_SYSTEM = {"style": "chat", "system": "Weights: {weights}"}
SCORER = {"type": "python", "function": "rewards.functions:brevity"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture
def workplace(tmp_path, policy):
    """A copy of the policy, to which a test may add a chat template, and a recipe that trains it."""
    shutil.copytree(policy, tmp_path / "policy")
    rows = [json.dumps({"prompt": prompt}) for prompt in ("t20 t21", "t20 " * 30)]
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def give_template(folder, template):
    (folder / "policy" / "chat_template.jinja").write_text(template)


def said_by_plan(capsys, folder, conditioning):
    recipe = {
        "name": "tiny",
        "policy": {"model": str(folder / "policy")},
        "objectives": [{"name": name, "scorer": SCORER} for name in ("a", "b")],
        "preferences": {"conditioning": conditioning},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "heldout")},
        "rollout": {"num_cpus": 0.5, "max_model_len": 128},
        "learner": {"num_cpus": 0.5},
        "loop": {"steps": 1, "prompts_per_step": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code = main(["plan", str(folder / "recipe.yaml")])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "conditioning", "said"),
    [
        (NO_SYSTEM, IN_SYSTEM, "chat template must write a system and user message, got No system role here"),
        (None, {"style": "chat"}, "chat template must write a user message, got Cannot use chat template"),
        ("{% for %}", {"style": "chat"}, "chat template must write a user message, got "),
        (TURNS, {"style": "chat", "chat_options": {"tokenize": True}}, "got "),
        (DROPS_SYSTEM, IN_SYSTEM, "two vectors must give two prompts, got the same 2 tokens for '<a> 0.0 <b> 1.0'"),
        (DROPS_SYSTEM, IN_SYSTEM, "the chat template leaves them out"),
        (CUTS, {"style": "chat"}, "two vectors must give two prompts, got the same 16 tokens"),
        (None, {"weight": "{name}={weight}"}, "the tokenizer reads both alike"),
        (
            THINKS,
            {"style": "chat", "chat_options": {"thinkng": True}},
            "chat_options must be variables of the tokenizer's chat template (messages, thinking), got thinkng",
        ),
    ],
)
def test_a_prompt_that_does_not_say_w_is_refused_in_one_line_before_anything_starts(
    capsys, workplace, template, conditioning, said
):
    if template is not None:
        give_template(workplace, template)
    code, line = said_by_plan(capsys, workplace, conditioning)
    assert code == 2
    assert line.startswith("mi-epo: preferences.conditioning: ")
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("template", "conditioning"),
    [
        (TURNS, IN_SYSTEM),
        (NO_SYSTEM, {"style": "chat"}),
        (DROPS_SYSTEM, {"style": "chat", "system": "t30"}),
        (CUTS_AT_A_WORD, {"style": "chat"}),
        (THINKS, {"style": "chat", "chat_options": {"thinking": True}}),
        (None, {}),
    ],
)
def test_a_prompt_that_says_w_is_planned(capsys, workplace, template, conditioning):
    if template is not None:
        give_template(workplace, template)
    assert said_by_plan(capsys, workplace, conditioning) == (0, "")


def test_every_prompt_must_say_w_not_only_the_shortest_and_the_longest(capsys, workplace):
    give_template(workplace, CUTS_AT_A_WORD)
    prompts = ("t20", "t20 [INST] t22", "t20 t21 t22 t23 t24 t25")
    (workplace / "train.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    rule = "two vectors must give two prompts, got the same text for '<a> 1.0 <b> 0.0' and '<a> 0.0 <b> 1.0'"
    assert said_by_plan(capsys, workplace, {"style": "chat"}) == (
        2,
        f"mi-epo: preferences.conditioning: {rule} (the chat template leaves them out) in prompt 't20 [INST] t22'\n",
    )


def test_a_prompt_that_holds_the_text_of_a_vector_does_not_say_w_by_it(workplace):
    give_template(workplace, CUTS_AT_A_WORD)
    tokenizer = load_tokenizer(str(workplace / "policy"))
    renderer = PromptRenderer(ConditioningConfig(style="chat"), ("a", "b"), 1, tokenizer)
    renderer.check_each(["t20 <a> 1.0 <b> 0.0 t21"])
    with pytest.raises(PreferenceError, match="got the same text"):
        renderer.check_each(["t20 <a> 1.0 <b> 0.0 [INST] t21"])


def test_many_prompts_have_the_tokens_that_each_has_alone(workplace):
    give_template(workplace, TURNS)
    tokenizer = load_tokenizer(str(workplace / "policy"))
    tokenizer.bos_token = "<unk>"
    prompts = ["t20", "t21 <unk> t22", "<unk> t23"]
    for style in ("text", "chat"):
        renderer = PromptRenderer(ConditioningConfig(style=style), ("a", "b"), 1, tokenizer)
        alone = [renderer.token_ids(prompt, [0.3, 0.7]) for prompt in prompts]
        assert renderer.token_ids_of_each(prompts, [0.3, 0.7]) == alone


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM, None])
def test_a_trained_policy_that_cannot_read_w_is_not_asked(capsys, workplace, template):
    if template is not None:
        give_template(workplace, template)
    record = {"objectives": ["a", "b"], "preferences": {"conditioning": IN_SYSTEM}, "max_new_tokens": 4,
              "temperature": 1.0}  # fmt: skip
    (workplace / "policy" / "mi_epo.json").write_text(json.dumps(record))
    (workplace / "policy" / "model.safetensors").unlink()  # the weights are never asked for
    asked = ["generate", str(workplace / "policy"), "--prefer", "a=0.5", "--prefer", "b=0.5", "--prompt", "t20"]
    assert main(asked) == 2
    line = capsys.readouterr().err
    assert "mi_epo.json: preferences.conditioning: " in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM, None])
def test_a_policy_is_not_fitted_to_rows_that_do_not_say_w(capsys, workplace, template):
    if template is not None:
        give_template(workplace, template)
    row = {"prompt": "t20", "response": "t21", "preference": [0.3, 0.7]}
    (workplace / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (workplace / "policy" / "model.safetensors").unlink()
    config = {
        "data": str(workplace / "rows.jsonl"),
        "output": str(workplace / "fitted"),
        "model": str(workplace / "policy"),
        "objectives": ["a", "b"],
        "preferences": {"conditioning": IN_SYSTEM},
        "optimization": {"steps": 1, "batch_size": 1, "learning_rate": 0.001},
        "device": "cpu",
    }
    (workplace / "fit.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit-policy", str(workplace / "fit.yaml")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("mi-epo: preferences.conditioning: ")
    assert line.count("\n") == 1
    assert not (workplace / "fitted").exists()


class SomeDigits(WordTokenizer):
    """Knows no number that ends with a 3 or a 7."""

    def __call__(self, text, **kwargs):
        return super().__call__(" ".join("?" if word.endswith(("3", "7")) else word for word in text.split()))


def test_every_number_that_may_be_printed_is_tried():
    PromptRenderer(ConditioningConfig(), ("a", "b", "c"), 2, WordTokenizer()).check("x")
    with pytest.raises(PreferenceError, match=r"must give two prompts, .* '<a> 0.03 <b> 0.97' and '<a> 0.07 <b> 0.93'"):
        PromptRenderer(ConditioningConfig(weight="<{name}> {weight}"), ("a", "b"), 2, SomeDigits()).check("x")
    PromptRenderer(ConditioningConfig(), ("a", "b"), 2, SomeDigits()).check("x", decimals=1)


def test_one_objective_has_nothing_to_tell_apart():
    PromptRenderer(ConditioningConfig(), ("a",), 1, SomeDigits()).check("x")


def test_what_a_template_raises_for_one_prompt_in_the_middle_of_a_run_is_one_line(capsys):
    class FromAnActor(RuntimeError):
        cause = PreferenceError("style 'chat': got x")

    assert explain(PreferenceError("style 'chat': got x")) == explain(FromAnActor()) == explain(BadInput("x")) == 2
    assert capsys.readouterr().err == "mi-epo: style 'chat': got x\n" * 2 + "mi-epo: x\n"


@pytest.fixture
def trained(workplace):
    record = {"objectives": ["a", "b"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0}
    (workplace / "policy" / "mi_epo.json").write_text(json.dumps(record))
    return workplace / "policy"


def said_by_generate(capsys, policy, *arguments, prefer=("a=0.5", "b=0.5")):
    weights = [part for item in prefer for part in ("--prefer", item)]
    assert main(["generate", str(policy), *weights, *arguments]) == 2
    return capsys.readouterr().err


def test_a_weight_that_is_given_twice_is_refused(capsys, trained):
    said = said_by_generate(capsys, trained, "--prompt", "t20", prefer=("a=.2", "a=.5", "b=.5"))
    assert said == "mi-epo: --prefer 'a=.5': must give 'a' one weight, gave 0.2 already\n"


def test_a_prompt_that_is_no_unicode_is_refused(capsys, trained, monkeypatch):
    monkeypatch.setattr("sys.stdin", ["t20 \udcff\n"])
    assert said_by_generate(capsys, trained) == "mi-epo: prompt: must be whole characters in UTF-8, got 't20 \\udcff'\n"


@pytest.mark.parametrize("ends", ["x", ["x"], "", {}, True, 1.5])
def test_an_end_that_is_no_token_id_is_refused_before_the_policy_loads(capsys, trained, ends):
    (trained / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (trained / "model.safetensors").unlink()
    said = said_by_generate(capsys, trained, "--prompt", "t20")
    assert said == (
        f"mi-epo: {trained / 'generation_config.json'}: eos_token_id must be a token id or a list of them, "
        f"got {ends!r}\n"
    )
