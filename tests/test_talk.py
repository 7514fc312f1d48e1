"""`mi-epo generate`: under one w, under all of the grid, in a dialogue; and what it is refused."""

import io
import shutil

import pytest

from orchestrator.errors import BadInput
from orchestrator.run.speaker import Speaker
from orchestrator.run.steering import PolicyConditioning
from orchestrator.run.talk import Wish, talk
from rewards.config import ConditioningConfig, PreferencesConfig
from rewards.prompts import Prompt, Turn
from tests.tiny_models import make_tiny_policy

TURNS = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture
def chatting(tmp_path, policy):
    """The same with a chat template, trained on dialogues."""
    shutil.copytree(policy, tmp_path / "policy")
    (tmp_path / "policy" / "chat_template.jinja").write_text(TURNS)
    return steered(tmp_path / "policy", style="chat")


def steered(policy, **conditioning):
    preferences = PreferencesConfig(conditioning=ConditioningConfig(**conditioning))
    record = PolicyConditioning(objectives=("a", "b"), preferences=preferences, max_new_tokens=6, temperature=1.0)
    (policy / "mi_epo.json").write_text(record.model_dump_json())
    return policy


def said(target, text="", **wish):
    wish = {"prefer": ["a=1", "b=0"], "prompt": None, "chat": False, "count": 1, "seed": 0, "sampling": {}} | wish
    told: list[str] = []
    talk(Wish(target=target, **wish), io.StringIO(text), say=told.append)
    return told


def test_every_line_is_answered_as_often_as_asked(policy):
    answers = said(steered(policy), "t20 t21\n\nt22\n", count=2)
    assert len(answers) == 4 and len(set(answers)) > 1
    assert answers == said(policy, "t20 t21\n\nt22\n", count=2) != said(policy, "t20 t21\n\nt22\n", count=2, seed=1)


def test_values_of_sampling_take_the_place_of_those_of_training(policy):
    [short] = said(steered(policy), prompt="t20", sampling={"temperature": 0, "max_new_tokens": 2})
    [greedy] = said(policy, prompt="t20", sampling={"temperature": 0})
    assert len(short.split()) <= 2 and greedy.startswith(short)
    assert said(policy, prompt="t20", sampling={"temperature": 0}, seed=5) == [greedy]
    with pytest.raises(BadInput, match=r"temperature: .*got -1"):
        said(policy, prompt="t20", sampling={"temperature": -1.0})


def test_a_sweep_answers_under_every_vector_of_the_grid(policy):
    told = said(steered(policy), prompt="t20", prefer=None, count=2, sampling={"temperature": 0})
    assert [each.split("\n")[0] for each in told] == [
        f"a {tenth / 10:.2g}, b {1 - tenth / 10:.2g}" for tenth in range(10, -1, -1)
    ]
    (alone,) = said(policy, prompt="t20", sampling={"temperature": 0})
    assert told[0].split("\n")[1:] == [f"  {alone}"] * 2


def test_a_dialogue_remembers_what_was_said_until_it_starts_over(chatting):
    cold = {"temperature": 0}
    first, second, again, new = said(chatting, "t20\nt21\n/new\nt20\nt21\n", chat=True, sampling=cold)[:4]
    speaker = Speaker(chatting, sampling=cold)
    earlier = (Turn(role="user", content="t20"), Turn(role="assistant", content=first))
    assert speaker.answers(Prompt(text="t21", earlier=earlier), [1, 0]) == [second]
    assert again == first and new == second
    assert speaker.answers("t21", [1, 0]) != [second]


def test_w_may_change_within_a_dialogue_and_what_cannot_be_done_is_told(policy):
    told = said(steered(policy), "/prefer a=0.25 b=0.75\n/prefer a=2\nt20\n", chat=True)
    assert told[0].startswith("(this policy was trained on prompts of one text")
    assert told[1] == "(a 0.25, b 0.75)" and told[2].startswith("(--prefer: ") and len(told) == 4


def test_a_dialogue_goes_with_one_w_and_one_answer(policy):
    for wish in ({"prefer": None}, {"count": 2}):
        with pytest.raises(BadInput, match="--chat gives one answer under one w"):
            said(steered(policy), chat=True, **wish)
