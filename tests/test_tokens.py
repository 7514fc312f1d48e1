"""Special tokens of a tokenizer meeting those that texts and templates write: policy and judges, both ends."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from orchestrator.tasks.fitting.bradley_terry import _by_prompt
from orchestrator.tasks.fitting.bradley_terry import _encode as encode_pairs
from orchestrator.tasks.fitting.config import PolicyFitConfig, RewardFitConfig
from orchestrator.tasks.fitting.supervised import _encode as encode_rows
from rewards.config import ConditioningConfig
from rewards.preferences import PromptRenderer
from rewards.reading import Reader
from rewards.tokens import SpecialTokens

WORDS = ("<unk>", "<s>", "</s>", "Human:", "Assistant:", "<a>", "<b>", "0.0", "0.3", "0.7", "1.0", "x", "y", "z")
OPTIMIZATION = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
TURNS = "<s>{% for message in messages %} {{ message['content'] }} {% endfor %}Assistant:"


def make_tokenizer(around="<s> $A", pair="<s> $A $B", template=None, bos="<s>"):
    """Words to ids; `around` is what it writes by itself."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    words.post_processor = TemplateProcessing(single=around, pair=pair, special_tokens=special)
    names = {"unk_token": "<unk>", "bos_token": bos, "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **names)


def words_of(ids):
    return " ".join(WORDS[index] for index in ids)


def prompt_words(prompt, tokenizer, **conditioning):
    renderer = PromptRenderer(ConditioningConfig(**conditioning), ("a", "b"), 1, tokenizer)
    return words_of(renderer.token_ids(prompt, [0.7, 0.3]))


@pytest.mark.parametrize("prompt", ["x", "<s> x", "<s>x", "<s> <s> x"])
@pytest.mark.parametrize("template", ["{prompt} {weights}", "<s> {prompt} {weights}", "<s>{prompt} {weights}"])
@pytest.mark.parametrize("around", ["<s> $A", "$A </s>", "<s> $A </s>"])
def test_a_prompt_is_begun_once_and_never_ended(prompt, template, around):
    said = prompt_words(prompt, make_tokenizer(around), template=template)
    assert said.removeprefix("<s> ") == "x <a> 0.7 <b> 0.3"


@pytest.mark.parametrize("prompt", ["x", "<s> x", "x <s> <s>"])
def test_a_beginning_inside_a_prompt_does_not_stand_amid_the_template(prompt):
    assert prompt_words(prompt, make_tokenizer()) == "<s> Human: x <a> 0.7 <b> 0.3 Assistant:"


def test_a_beginning_that_only_the_prompt_writes_stays():
    assert prompt_words("<s> x", make_tokenizer("$A"), template="{prompt} {weights}") == "<s> x <a> 0.7 <b> 0.3"
    assert prompt_words("x", make_tokenizer("$A"), template="{prompt} {weights}") == "x <a> 0.7 <b> 0.3"


@pytest.mark.parametrize("prompt", ["x", "<s> x"])
@pytest.mark.parametrize("template", ["{prompt} {weights}", "<s> {prompt} {weights}"])
def test_a_chat_template_that_begins_its_text_is_not_begun_again(prompt, template):
    tokenizer = make_tokenizer(template=TURNS)
    if template.startswith("<s>"):
        tokenizer.chat_template = TURNS.removeprefix("<s>")
    assert prompt_words(prompt, tokenizer, style="chat", template=template) == "<s> x <a> 0.7 <b> 0.3 Assistant:"


def test_a_beginning_that_marks_every_turn_stays_in_every_turn():
    turns = "{% for message in messages %}<s> {{ message['content'] }} {% endfor %}<s> Assistant:"
    said = prompt_words("<s> x", make_tokenizer(template=turns), style="chat", system="y")
    assert said == "<s> y <s> x <a> 0.7 <b> 0.3 <s> Assistant:"


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("template", ["<s> {prompt} {response} </s>", "<s>{prompt} {response}</s>"])
@pytest.mark.parametrize(("prompt", "response"), [("x", "y"), ("<s> x", "y"), ("x", "<s>y"), ("x", "y </s>")])
def test_what_a_judge_reads_is_begun_and_ended_once(around, template, prompt, response):
    reader = Reader(make_tokenizer(around), template, max_length=9, where="judge")
    assert words_of(reader.read(prompt, response)[0]) == "<s> x y </s>"


def test_a_pair_is_begun_once():
    reader = Reader(make_tokenizer(), "<s> {prompt}{response}", max_length=9, pair=True, where="judge")
    assert words_of(reader.read("<s> x", "y")[0]) == "<s> x y"


def test_a_shortened_input_keeps_its_beginning():
    reader = Reader(make_tokenizer("<s> $A </s>"), "Human: {prompt} {response}", max_length=5, where="judge")
    ids, shortened = reader.read("z z z x", "y")
    assert (words_of(ids), shortened) == ("<s> Human: x y </s>", True)


def test_a_reward_fit_reads_what_the_scorer_will_read():
    config = RewardFitConfig(
        output="o", model="m", max_length=5, optimization=OPTIMIZATION, template="<s> Human: {prompt} {response} </s>"
    )
    groups = _by_prompt([{"prompt": "<s> z z x", "chosen": "y", "rejected": "z </s>"}])
    (example,), shortened = encode_pairs(config, make_tokenizer("<s> $A </s>"), groups)
    assert [words_of(ids) for ids in example["inputs"]] == ["<s> Human: x y </s>", "<s> Human: x z </s>"]
    assert shortened == 2


@pytest.mark.parametrize("response", ["y", "y</s>", "<s> y </s>"])
def test_a_policy_fit_learns_rows_with_one_beginning_and_one_end(response):
    config = PolicyFitConfig(output="o", model="m", optimization=OPTIMIZATION, objectives=("a", "b"))
    row = {"prompt": "<s> x", "response": response}
    rows = [{**row, "preference": [0.7, 0.3]}, row]
    (asked, plain), _ = encode_rows(config, make_tokenizer("<s> $A </s>"), rows)
    assert words_of(asked["input_ids"]) == "<s> Human: x <a> 0.7 <b> 0.3 Assistant: y </s>"
    assert words_of(plain["input_ids"]) == "<s> x y </s>"
    assert plain["labels"] == [-100, -100, WORDS.index("y"), WORDS.index("</s>")]


def test_a_shortened_row_keeps_its_weights_wherever_they_stand():
    conditioning = {"template": "Human: {weights} {prompt} Assistant:"}
    config = PolicyFitConfig(
        output="o", model="m", optimization=OPTIMIZATION, objectives=("a", "b"), max_length=10,
        preferences={"conditioning": conditioning},
    )  # fmt: skip
    rows = [{"prompt": "z z z x", "response": "y", "preference": w} for w in ([0.7, 0.3], [0.3, 0.7])]
    examples, shortened = encode_rows(config, make_tokenizer(), rows)
    assert shortened == 2
    assert [words_of(each["input_ids"]) for each in examples] == [
        "<s> Human: <a> 0.7 <b> 0.3 x Assistant: y </s>",
        "<s> Human: <a> 0.3 <b> 0.7 x Assistant: y </s>",
    ]


def test_a_tokenizer_without_special_tokens_adds_none():
    special = SpecialTokens(make_tokenizer("$A", bos=None))
    assert special.open_ids("x y") == special.closed_ids("x y") == [WORDS.index("x"), WORDS.index("y")]
    assert special.closed_ids("") == []
