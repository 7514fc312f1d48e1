"""A judge is read at the last real token, whatever it is padded with, when it is fitted and when it scores."""

import pytest
import torch

from orchestrator.tasks.fitting.bradley_terry import fit_reward
from orchestrator.tasks.fitting.config import Optimization, RewardFitConfig
from rewards.classifier import ClassifierScorer
from rewards.judge_sections import HuggingFaceScorerConfig
from rewards.reading import padding_id
from tests.tiny_models import make_tiny_classifier

TEMPLATE = "{prompt} {response} <eos>"
PROMPTS, RESPONSES = ["t20 t21", "t22", "t23 t24 t25"], ["t30", "t31 t32 t33 t34 t35", "t36"]


@pytest.fixture(scope="module", params=[None, "<eos>"], ids=["no padding token", "padding with the end token"])
def judge(request, tmp_path_factory):
    """A judge whose tokenizer has no padding token of its own."""
    from transformers import AutoTokenizer

    folder = make_tiny_classifier(tmp_path_factory.mktemp("judge") / "judge")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = request.param
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token == request.param
    return folder


def score_at_the_last_token(folder, text):
    """The score head on the last hidden state of the text alone, past all rules of padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.no_grad():
        return float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]))


@pytest.mark.parametrize("template", [TEMPLATE, "{prompt} {response}", "{prompt} {response} <eos> <eos>"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_template_that_ends_with_the_end_token_is_scored_there(judge, template, batch_size):
    config = HuggingFaceScorerConfig(model=str(judge), template=template, batch_size=batch_size, device="cpu")
    texts = [f"{prompt} {response}" for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    closed = [f"{text} <eos>" if "<eos>" in template else text for text in texts]
    scores = ClassifierScorer(config).score(PROMPTS, RESPONSES)
    assert scores.tolist() == pytest.approx([score_at_the_last_token(judge, text) for text in closed], abs=1e-6)


def test_a_reward_fit_measures_where_the_scorer_will(judge, tmp_path):
    config = RewardFitConfig(
        output=str(tmp_path / "fitted"), model=str(judge), template=TEMPLATE, device="cpu", heldout_fraction=0,
        optimization=Optimization(steps=1, batch_size=2, learning_rate=1e-9),
    )  # fmt: skip
    pairs = [{"prompt": "t20", "chosen": "t30 t31", "rejected": "t32"}] * 2
    margin = score_at_the_last_token(judge, "t20 t30 t31 <eos>") - score_at_the_last_token(judge, "t20 t32 <eos>")
    loss = float(-torch.nn.functional.logsigmoid(torch.tensor(margin)))
    report = fit_reward(config, pairs, pairs)
    assert report.loss == pytest.approx(loss, abs=1e-5)
    assert report.heldout_loss == pytest.approx(loss, abs=1e-5)
    scorer = ClassifierScorer(HuggingFaceScorerConfig(model=config.output, template=TEMPLATE, device="cpu"))
    scores = scorer.score(["t20", "t20"], ["t30 t31", "t32"])
    assert scores[0] - scores[1] == pytest.approx(margin, abs=1e-5)


def test_the_padding_token_stays_unless_a_row_ends_with_it():
    assert padding_id(7, [[7, 3], [5]]) == 7
    assert padding_id(7, [[5, 7], [0], [2]]) == 1
    assert padding_id(7, [[], [7]]) == 0
