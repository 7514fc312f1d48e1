"""Scorers: a real (tiny) classifier, Python functions, and a real HTTP server on the loopback address."""

import array
import contextlib
import json
import logging
import math
import os
import re
import socket
import threading
import time
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rewards.classifier import ClassifierScorer
from rewards.config import ObjectiveConfig, panel_name, panels
from rewards.judge_sections import HTTPScorerConfig, HuggingFaceScorerConfig, PythonScorerConfig
from rewards.judges import build_scorer, build_scorers, check_scorer
from rewards.prompts import Prompt
from rewards.scorers import PROBE_RESPONSE, ScorerError, as_scores

WORDS = ("<pad>", "<eos>", "<unk>", "Human:", *"abcdefghij", "{prompt}", "{response}")

# --- Python functions -------------------------------------------------------------------------------------------------


def word_count(prompts, responses, scale=1.0):
    return [scale * len(response.split()) for response in responses]


def partly_missing(prompts, responses):
    return [None, math.nan, math.inf, -math.inf, 1, np.float32(2.5)]


def too_short(prompts, responses):
    return [0.0]


def a_single_number(prompts, responses):
    return 3.0


def words(prompts, responses):
    return ["good" for _ in responses]


def broken(prompts, responses):
    raise RuntimeError("no tea left\nand a long story")


async def later(prompts, responses):
    return [0.0 for _ in responses]


CANNOT_READ = f"ValueError: could not convert string to float: {PROBE_RESPONSE!r}"


def needs_an_egg(prompts, responses):
    return [{"How many?": 12.0}[prompt] for prompt in prompts]


def is_right(prompts, responses, answer, tolerance=0.0):
    return [float(abs(float(text) - right) <= tolerance) for text, right in zip(responses, answer, strict=True)]


def ends_everything(prompts, responses):
    os._exit(7)


def never_returns(prompts, responses):
    while True:
        time.sleep(0.01)


def broken_on_the_way(prompts, responses):
    yield 1.0
    raise RuntimeError("no tea left")


def leaving(prompts, responses):
    raise SystemExit(3)


NOT_CALLABLE = 3


def python_scorer(function, **options):
    return build_scorer(PythonScorerConfig(function=f"{__name__}:{function.__name__}", options=options))


def test_a_python_function_scores_with_its_options():
    scores = python_scorer(word_count, scale=2.0).score(["p", "p"], ["a b", ""])
    assert scores.tolist() == [4.0, 0.0]
    assert scores.dtype == np.float64


def test_single_missing_scores_are_nan_and_never_zero():
    scores = python_scorer(partly_missing).score(["p"] * 6, ["r"] * 6)
    assert np.isnan(scores[:4]).all()
    assert scores[4:].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (too_short, "must return 2 scores, got 1"),
        (a_single_number, "must return 2 scores in order, got float"),
        (words, "score 0 must be a number or null, got 'good'"),
        (broken, "raised RuntimeError: no tea left$"),
        (broken_on_the_way, "raised RuntimeError: no tea left$"),
        (leaving, "raised SystemExit: 3$"),
    ],
)
def test_a_function_that_fails_as_a_whole_is_a_scorer_error_naming_it(function, problem):
    with pytest.raises(ScorerError, match=problem) as caught:
        python_scorer(function).score(["p", "p"], ["r", "r"])
    assert function.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ({3, 1}, "must return 2 scores in order, got set"),
        (frozenset([3, 1]), "must return 2 scores in order, got frozenset"),
        ({3: "a", 1: "b"}.keys(), "must return 2 scores in order, got dict_keys"),
        ({3: "a", 1: "b"}, "must return 2 scores in order, got dict"),
        (bytearray(b"12"), "must return 2 scores in order, got bytearray"),
        (memoryview(b"12"), "must return 2 scores in order, got memoryview"),
        (np.array([1 + 2j, 3]), "score 0 must be a number or null, got complex128"),
        ([1.0, 2j], "score 1 must be a number or null, got complex"),
        ([1.0, np.zeros(2)], "score 1 must be a number or null, got ndarray"),
    ],
)
def test_what_has_no_order_or_no_real_numbers_is_no_scores(returned, problem):
    with pytest.raises(ScorerError, match=f"^judge:? {problem}$"):
        as_scores(returned, 2, where="judge")


@pytest.mark.parametrize(
    "returned", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), array.array("d", [1, 2.5]), iter([True, Decimal("2.5")])]
)
def test_any_sequence_or_array_of_real_numbers_is_scores(returned):
    assert as_scores(returned, 2, where="judge").tolist() == [1.0, 2.5]


def test_prompts_and_responses_must_be_as_many():
    with pytest.raises(ValueError, match="got 1 and 2"):
        python_scorer(word_count).score(["p"], ["a", "b"])


def test_checks_name_the_place_and_the_broken_part_of_a_dotted_path():
    def problems(function):
        return check_scorer(PythonScorerConfig(function=function), "objectives.0.scorer")

    assert problems(f"{__name__}:word_count") == []
    (problem,) = problems("no_such_package.rewards:f")
    assert problem.startswith("objectives.0.scorer.function: cannot import 'no_such_package.rewards'")
    assert "has no 'no_such_function'" in problems("math:no_such_function")[0]
    assert "must be a function, got int" in problems(f"{__name__}:NOT_CALLABLE")[0]


def asked(function, options=None, **values):
    config = PythonScorerConfig(function=f"{__name__}:{function.__name__}", options=options or {})
    return check_scorer(config, "o", **values)


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (word_count, {"scael": 2.0}, "raised TypeError: word_count\\(\\) got an unexpected keyword argument 'scael'"),
        (word_count, {"scale": "1e1"}, "score 0 must be a number or null, got '1e11e11e11e11e1'"),
        (broken, {}, "raised RuntimeError: no tea left"),
        (later, {}, "must return 1 scores in order, got coroutine"),
        (needs_an_egg, {}, "raised KeyError: 'How do I boil an egg\\?'"),
        (ends_everything, {}, "ended its process, with exit code 7"),
    ],
)
def test_a_function_that_cannot_score_one_response_is_known_before_the_start(function, options, problem):
    (said,) = asked(function, options)
    assert re.fullmatch(f"o.function: scorer {__name__}:{function.__name__}:? {problem}", said)


def test_a_function_is_asked_about_a_prompt_of_the_run_and_only_where_it_can_run():
    assert asked(needs_an_egg, prompt=Prompt(text="How many?")) == []
    assert asked(broken, here=False) == []
    (said,) = check_scorer(PythonScorerConfig(function="math:no_such_function"), "o", here=False)
    assert "has no 'no_such_function'" in said


def test_a_function_compares_with_the_columns_that_it_asks_for():
    config = PythonScorerConfig(function=f"{__name__}:is_right", columns=("answer",), options={"tolerance": 0.5})
    given = {"answer": [4, 7, 9], "other": [0, 0, 0]}
    assert build_scorer(config).score(["?"] * 3, ["4", "6.6", "3"], given).tolist() == [1.0, 1.0, 0.0]
    assert check_scorer(config, "o") == []  # nobody knows an answer to ask it with
    (said,) = check_scorer(config, "o", prompt=Prompt(text="2 + 2?", columns={"answer": 4}))
    assert said == f"o.function: scorer {__name__}:is_right raised {CANNOT_READ}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"columns": ("answer", "answer")}, "must differ from each other and from prompts and responses, got 'answer'"),
        ({"columns": ("prompts",)}, "must differ from each other and from prompts and responses, got 'prompts'"),
        ({"columns": ("right answer",)}, "columns must be names that an argument can have, got 'right answer'"),
        ({"columns": ("class",)}, "columns must be names that an argument can have, got 'class'"),
        ({"columns": ("scale",), "options": {"scale": 1}}, "columns must differ from options, both have 'scale'"),
    ],
)
def test_columns_that_a_function_could_not_be_given_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        PythonScorerConfig(function="math:cos", **values)


def test_a_function_that_takes_its_time_is_let_be(monkeypatch):
    monkeypatch.setattr("rewards.scorers.FUNCTION_PROBE_S", 1.0)
    started = time.monotonic()
    assert asked(never_returns) == []
    assert time.monotonic() - started < 30


# --- HTTP -------------------------------------------------------------------------------------------------------------


class FakeServer:
    """Answers POSTs from a list of (status, body) and remembers what it was asked."""

    def __init__(self):
        self.answers: list[tuple[int, object]] = []
        self.requests: list[tuple[str, str | None, dict]] = []
        self.trickle_s: float | None = None  # pause after each byte of an answer
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append((self.path, self.headers.get("Authorization"), body))
                status, answer = fake.answers.pop(0) if fake.answers else (200, None)
                if answer is None:
                    answer = {"scores": [len(response) for response in body["responses"]]}
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if fake.trickle_s is None:
                    self.wfile.write(data)
                    return
                with contextlib.suppress(OSError):  # the client has left
                    for byte in data:
                        self.wfile.write(bytes([byte]))
                        time.sleep(fake.trickle_s)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def scorer(self, **values):
        return build_scorer(HTTPScorerConfig(**{"url": self.url, "timeout_s": 30, "retries": 1, **values}))

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=5)


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    fake.close()


def test_a_server_scores_in_batches_and_in_order(server):
    scores = server.scorer(batch_size=2).score(["p"] * 5, ["a", "bb", "ccc", "d", "ee"])
    assert scores.tolist() == [1, 2, 3, 1, 2]
    assert [len(body["responses"]) for _, _, body in server.requests] == [2, 2, 1]
    assert server.requests[0][2] == {"prompts": ["p", "p"], "responses": ["a", "bb"]}


def test_a_server_is_sent_the_columns_that_it_asks_for(server):
    given = {"answer": ["4", "5", "6"], "other": [0, 0, 0]}
    server.scorer(batch_size=2, columns=("answer",)).score(["p"] * 3, ["a", "b", "c"], given)
    assert [body["columns"] for _, _, body in server.requests] == [{"answer": ["4", "5"]}, {"answer": ["6"]}]


def test_nothing_to_score_asks_nobody(server):
    assert server.scorer().score([], []).shape == (0,)
    assert server.requests == []


def test_missing_scores_of_a_server_are_nan(server):
    server.answers = [(200, b'{"scores": [null, NaN, 2]}')]
    scores = server.scorer().score(["p"] * 3, ["r"] * 3)
    assert np.isnan(scores[:2]).all() and scores[2] == 2


def test_a_passing_failure_is_tried_again(server):
    server.answers = [(503, {}), (200, {"scores": [7.0]})]
    assert server.scorer(retries=1).score(["p"], ["r"]).tolist() == [7.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([(503, {})] * 2, "status 503 after 2 tries"),
        ([(401, {})], "status 401, expected 200"),
        ([(302, {})], "status 302"),
        ([(200, b"<html>")], "did not answer with JSON"),
        ([(200, b"[" * 100_000)], "did not answer with JSON"),
        ([(200, b" " * (17 << 20))], "answered with more than 16777216 bytes"),
        ([(200, {"score": [1]})], "must answer with"),
        ([(200, {"scores": [1.0, 2.0]})], "must return 1 scores, got 2"),
        ([(200, {"scores": ["0.5"]})], "must be a number or null"),
    ],
)
def test_a_bad_answer_is_a_scorer_error_naming_the_server(server, answers, problem):
    server.answers = list(answers)
    with pytest.raises(ScorerError, match=problem) as caught:
        server.scorer().score(["p"], ["r"])
    assert server.url in str(caught.value)


def test_an_answer_that_trickles_is_given_up_at_the_deadline(server):
    server.trickle_s = 0.2  # each piece well within timeout_s
    started = time.monotonic()
    with pytest.raises(ScorerError, match="took longer than 1 s"):
        server.scorer(timeout_s=1, retries=0).score(["p"] * 100, ["r"] * 100)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, None), None),
        ((404, {}), "answered with status 404, expected 200"),
        ((503, {}), "answered with status 503 after 1 try, expected 200"),
        ((200, b"<html>"), "did not answer with JSON"),
        ((200, {"scores": []}), "must return 1 scores, got 0"),
    ],
)
def test_a_server_is_asked_once_before_a_run(server, answer, problem):
    server.answers = [answer]
    found = check_scorer(HTTPScorerConfig(url=server.url, retries=9), "objectives.0.scorer")
    assert len(server.requests) == 1
    assert len(found) == (problem is not None)
    assert all(said.startswith(f"objectives.0.scorer.url: scorer {server.url}") and problem in said for said in found)


def test_a_server_that_is_down_is_known_before_a_run_and_one_that_takes_its_time_is_not_refused(server):
    server.trickle_s = 0.2
    assert check_scorer(HTTPScorerConfig(url=server.url, timeout_s=0.5), "o") == []
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/score"
    assert check_scorer(HTTPScorerConfig(url=url, timeout_s=0.5), "o") == []
    silent.close()
    found = check_scorer(HTTPScorerConfig(url=url), "o")
    assert found == [f"o.url: scorer {url} is unreachable after 1 try (ConnectionError)"]


def test_a_server_that_is_down_is_named_without_its_query():
    fake = FakeServer()
    fake.close()
    scorer = build_scorer(HTTPScorerConfig(url=fake.url + "?key=hush", timeout_s=2, retries=1))
    with pytest.raises(ScorerError, match="unreachable after 2 tries") as caught:
        scorer.score(["p"], ["r"])
    assert fake.url in str(caught.value)
    assert "hush" not in str(caught.value)


def test_the_token_is_sent_and_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv("SCORER_TOKEN_OF_TEST", "s3cret")
    caplog.set_level(logging.DEBUG)
    scorer = server.scorer(token_env="SCORER_TOKEN_OF_TEST")
    scorer.score(["p"], ["r"])
    assert server.requests[0][1] == "Bearer s3cret"
    server.answers = [(401, {"error": "s3cret"})]
    with pytest.raises(ScorerError) as caught:
        scorer.score(["p"], ["r"])
    assert "s3cret" not in str(caught.value) + caplog.text + repr(vars(scorer))


def test_a_token_that_is_not_set_is_known_before_the_start(monkeypatch):
    monkeypatch.delenv("SCORER_TOKEN_OF_TEST", raising=False)
    config = HTTPScorerConfig(url="http://rm/score", token_env="SCORER_TOKEN_OF_TEST")
    assert check_scorer(config, "o.scorer") == [
        "o.scorer.token_env: environment variable 'SCORER_TOKEN_OF_TEST' is not set"
    ]
    with pytest.raises(ScorerError, match="SCORER_TOKEN_OF_TEST"):
        build_scorer(config)


# --- Hugging Face classifier ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random two-label Llama classifier of 16 positions-by-words, with its word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("classifier")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(path)
    torch.manual_seed(0)
    LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            num_labels=2,
            pad_token_id=0,
            initializer_range=0.5,
        )
    ).save_pretrained(path)
    return path


def classify(path, prompts, responses, **values):
    return build_scorer(HuggingFaceScorerConfig(model=str(path), device="cpu", **values)).score(prompts, responses)


def test_labels_of_one_classifier_are_read_of_one_pass(classifier):
    helpful, honest = (
        HuggingFaceScorerConfig(model=str(classifier), device="cpu", label=label, negate=bool(label))
        for label in (0, 1)
    )
    prompts, responses = ["a b", "c"], ["h", "i j i"]
    alone = [build_scorer(config).score(prompts, responses) for config in (helpful, honest)]
    np.testing.assert_array_equal(ClassifierScorer(helpful, honest).score_each(prompts, responses), np.stack(alone, 1))
    np.testing.assert_array_equal(build_scorers([honest, helpful])(prompts, responses, {}), np.stack(alone[::-1], 1))
    words = PythonScorerConfig(function=f"{__name__}:word_count")
    np.testing.assert_array_equal(build_scorers([helpful, words])(prompts, responses, {})[:, 1], [1, 3])
    with pytest.raises(ScorerError, match="has 2 labels, so label must be < 2, got 2"):
        ClassifierScorer(helpful, helpful.model_copy(update={"label": 2}))


def test_objectives_that_differ_in_label_and_sign_alone_have_one_judge(classifier):
    scorer = HuggingFaceScorerConfig(model=str(classifier))
    a = ObjectiveConfig(name="a", scorer=scorer)
    b = ObjectiveConfig(name="b", scorer=PythonScorerConfig(function="math:cos"))
    c = ObjectiveConfig(name="c", scorer=scorer.model_copy(update={"label": 1, "negate": True}), audit=b.scorer)
    assert [panel_name(panel) for panel in panels([b, a, c])] == ["b", "a+c"]
    for other in (
        {"scorer": scorer.model_copy(update={"template": "{response}"})},
        {"num_cpus": 1.0},
        {"scorer": b.scorer},
    ):
        assert [panel_name(panel) for panel in panels([a, b, c.model_copy(update=other)])] == ["a", "b", "c"]


def test_a_classifier_scores_each_response_as_it_would_alone(classifier):
    """Order, batches and padding must not matter; compared with the model called directly."""
    import torch
    from transformers import AutoModelForSequenceClassification

    prompts = ["a b", "c", "d e f g", "a", "b b b"]
    responses = ["h", "i j i j i j", "h", "j i", "a"]
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    logits = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = [WORDS.index(word) for word in f"{prompt} {response}".split()]
        with torch.no_grad():
            logits.append(model(torch.tensor([ids])).logits[0].tolist())
    expected = np.array(logits)
    for batch_size in (1, 2, 64):
        scores = classify(classifier, prompts, responses, batch_size=batch_size)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(classify(classifier, prompts, responses, label=1), expected[:, 1], atol=1e-5)
    np.testing.assert_allclose(classify(classifier, prompts, responses, negate=True), -expected[:, 0], atol=1e-5)
    rough = classify(classifier, prompts, responses, dtype="bfloat16")
    np.testing.assert_allclose(rough, expected[:, 0], atol=0.15)


def test_a_template_is_filled_once_and_braces_in_texts_are_plain(classifier):
    scores = classify(classifier, ["a", "a"], ["b", "c"], template="Human: {prompt} {response} <eos>")
    same = classify(classifier, ["Human: a", "Human: a"], ["b <eos>", "c <eos>"])
    np.testing.assert_allclose(scores, same, atol=1e-6)
    braces = classify(classifier, ["{response}", "a"], ["b", "{prompt}"], template="{prompt} {response}")
    assert np.isfinite(braces).all()
    assert abs(braces[0] - classify(classifier, ["b"], ["b"])[0]) > 1e-4


def test_a_pair_is_two_texts_to_the_tokenizer(classifier):
    glued, apart = (
        classify(classifier, ["a b"], ["h"], template="{prompt}{response}", pair=pair) for pair in (False, True)
    )
    assert apart == pytest.approx(classify(classifier, ["a b"], ["h"], template="{prompt} {response}"), abs=1e-6)
    assert abs(glued[0] - apart[0]) > 1e-4  # "bh" is one unknown word
    with pytest.raises(ValueError, match=r"template must end with \{response\} when pair is set"):
        HuggingFaceScorerConfig(model="m", template="{response} <eos>", pair=True)


@pytest.fixture
def score_head(classifier, tmp_path):
    """The classifier's first label as a checkpoint that calls its last layer otherwise; a function adds tensors."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(classifier, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["score_head.weight"] = tensors.pop("score.weight")[:1].clone()

    def save(**more):
        save_file({**tensors, **more}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return save


def test_a_last_layer_of_another_name_is_found_when_it_is_named(classifier, score_head):
    prompts, responses = ["a b", "c"], ["h", "i j i"]
    path = score_head()
    assert check_scorer(HuggingFaceScorerConfig(model=str(path), head="score_head"), "o") == []
    scores = classify(path, prompts, responses, head="score_head")
    np.testing.assert_allclose(scores, classify(classifier, prompts, responses), atol=1e-6)
    with pytest.raises(ScorerError, match=r"holds no trained weights for score\.weight"):
        classify(path, prompts, responses)


def test_a_last_layer_with_more_than_weights_is_refused(score_head):
    import torch

    with pytest.raises(ScorerError, match=r"has weights that its class has no place for: score\.bias"):
        classify(score_head(**{"score_head.bias": torch.zeros(1)}), ["a"], ["b"], head="score_head")


def test_long_inputs_lose_the_start_of_the_prompt_and_are_counted(classifier):
    scorer = ClassifierScorer(HuggingFaceScorerConfig(model=str(classifier), device="cpu", max_length=6,
                                                  template="Human: {prompt} {response} <eos>"))  # fmt: skip
    scores = scorer.score(["a b c d e f g", "f g", "a b"], ["h i", "h i", "h i j a b c d e f"])
    assert scorer.truncated == 2
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    shortened = classify(classifier, [""], ["h i j a"], template="Human: {prompt} {response} <eos>")
    assert scores[2] == pytest.approx(shortened[0], abs=1e-6)


@pytest.mark.parametrize("max_length", [1, 2])
def test_a_template_that_leaves_no_room_for_a_response_is_refused_before_and_at_loading(classifier, max_length):
    config = HuggingFaceScorerConfig(
        model=str(classifier), device="cpu", max_length=max_length, template="Human: {prompt} {response} <eos>"
    )
    rule = f"max_length must leave room for a response beside the template's 2 tokens, got {max_length}"
    assert check_scorer(config, "o") == [f"o.model: classifier {str(classifier)!r}: {rule}"]
    with pytest.raises(ScorerError, match=rule):
        build_scorer(config)
    assert check_scorer(config.model_copy(update={"max_length": 3}), "o") == []


def test_the_models_own_limit_is_kept(classifier):
    scorer = ClassifierScorer(HuggingFaceScorerConfig(model=str(classifier), device="cpu", max_length=512))
    assert scorer.max_length == 64


def test_nothing_to_read_is_a_missing_score(classifier):
    scores = classify(classifier, ["", "a"], ["", "b"])
    assert np.isnan(scores[0]) and np.isfinite(scores[1])
    assert classify(classifier, [], []).shape == (0,)


def test_a_missing_label_is_refused_before_and_at_loading(classifier):
    config = HuggingFaceScorerConfig(model=str(classifier), label=2, device="cpu")
    assert "has 2 labels, so label must be < 2, got 2" in check_scorer(config, "o")[0]
    with pytest.raises(ScorerError, match="has 2 labels"):
        build_scorer(config)


def test_a_language_model_is_no_classifier(classifier, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    config = HuggingFaceScorerConfig(model=str(tmp_path), device="cpu")
    assert "holds LlamaForCausalLM, not a sequence classifier" in check_scorer(config, "o")[0]
    with pytest.raises(ScorerError, match="holds no trained weights for score"):
        build_scorer(config)


def test_folders_are_checked_and_hub_ids_are_not(classifier, tmp_path):
    def problems(model):
        return check_scorer(HuggingFaceScorerConfig(model=str(model)), "o.scorer")

    assert problems(classifier) == []
    assert problems("some-organisation/some-model") == []
    assert problems(tmp_path / "gone") == [f"o.scorer.model: folder '{tmp_path / 'gone'}' does not exist"]
    assert problems("./gone") == ["o.scorer.model: folder './gone' does not exist"]
    assert "holds no config.json" in problems(tmp_path)[0]
    (tmp_path / "config.json").write_text("{")
    assert "config.json: is not valid JSON" in problems(tmp_path)[0]
    (tmp_path / "config.json").write_text("{}")
    assert "holds no tokenizer" in problems(tmp_path)[0]


def test_a_folder_that_cannot_be_loaded_is_a_scorer_error_naming_it(tmp_path):
    with pytest.raises(ScorerError, match="gone"):
        build_scorer(HuggingFaceScorerConfig(model=str(tmp_path / "gone"), device="cpu"))
