import random

import numpy as np
import pytest

from orchestrator.tasks.miniature import grammar, spec
from orchestrator.tasks.miniature.grammar import build_tokenizer
from orchestrator.tasks.miniature.spec import CorpusSpec
from rewards.config import PreferencesConfig
from rewards.preferences import PromptRenderer

LOCK = "how do i pick the lock for my boss ?"
OBJECTIVES = ("helpfulness", "harmlessness")


def test_there_are_768_different_prompts_of_which_96_are_held_out():
    train, heldout = grammar.split_prompts(0)
    assert (len(train), len(heldout)) == (672, 96)
    assert len({*train, *heldout}) == 768


def test_another_seed_holds_out_other_prompts_and_the_same_seed_the_same():
    assert grammar.split_prompts(0) == grammar.split_prompts(0)
    assert grammar.split_prompts(0)[1] != grammar.split_prompts(1)[1]


def test_half_of_the_topics_are_risky():
    assert [topic.risky for topic in spec.TOPICS].count(True) == 8
    assert grammar.topic_of(LOCK) == spec.Topic("pick", "lock", "wire", True)
    assert not grammar.topic_of("please help my son bake the bread .").risky


def test_a_prompt_from_elsewhere_has_no_topic():
    with pytest.raises(ValueError, match="one of the miniature's 768"):
        grammar.topic_of("how do i pick the lock ?")


def test_the_vocabulary_has_163_words_and_knows_every_text():
    vocabulary = grammar.vocabulary()
    assert len(vocabulary) == len(set(vocabulary)) == 163
    spoken = " ".join([*grammar.all_prompts(), *grammar.sentences()]).split()
    assert set(spoken) <= set(vocabulary)


def test_a_sentence_says_its_kind_and_what_it_could_be_about():
    about_lock = grammar.sentences()["use the wire on the lock"]
    assert about_lock.kind == spec.HELP
    assert {topic.noun for topic in about_lock.topics} == {"lock"}
    assert len(grammar.sentences()["wear gloves and stay safe"].topics) == 16


def test_a_cut_off_last_sentence_is_marked():
    assert grammar.split_sentences("good question . first get") == ["good question", "first get ..."]
    assert grammar.split_sentences("") == []


def test_the_tokenizer_gives_back_every_text_word_for_word():
    tokenizer = build_tokenizer()
    text = "sorry , i cannot help you pick the lock . my cat can pick the lock , haha ."
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split())
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids


def test_the_tokenizer_loads_from_its_folder_and_adds_nothing(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    preferences = PreferencesConfig()
    renderer = PromptRenderer(preferences.conditioning, OBJECTIVES, preferences.decimals, loaded)
    words = f"Human: {LOCK} <helpfulness> 0.7 <harmlessness> 0.3 Assistant:".split()
    assert loaded.convert_ids_to_tokens(renderer.token_ids(LOCK, [0.7, 0.3])) == words
    assert loaded("zebra")["input_ids"] == [loaded.unk_token_id]
    assert (loaded.pad_token, loaded.eos_token, loaded.bos_token) == ("<pad>", "<eos>", None)


def test_conditioned_prompts_have_14_to_19_tokens():
    write = PromptRenderer(PreferencesConfig().conditioning, OBJECTIVES, 1)
    lengths = {len(write.text(prompt, [0.5, 0.5]).split()) for prompt in grammar.all_prompts()}
    assert (min(lengths), max(lengths)) == (14, 19)


def test_corpus_responses_are_grammatical_and_fit_the_budget_with_their_end_token():
    rows = grammar.sample_rows(
        np.random.default_rng(0), grammar.all_prompts(), 500, objectives=OBJECTIVES, corpus=CorpusSpec()
    )
    for row in rows:
        assert len(row["response"].split()) + 1 <= spec.MAX_NEW_TOKENS
        assert all(text in grammar.sentences() for text in grammar.split_sentences(row["response"]))
        assert sum(row["preference"]) == pytest.approx(1)


def test_the_corpus_follows_w():
    rows = grammar.sample_rows(
        np.random.default_rng(0), grammar.all_prompts(), 2000, objectives=spec.OBJECTIVES, corpus=CorpusSpec()
    )
    weights = np.array([row["preference"] for row in rows])
    counts = np.array(
        [
            [
                sum(grammar.sentences()[text].kind == kind for text in grammar.split_sentences(row["response"]))
                for kind in (spec.HELP, spec.CAUTION, spec.JOKE)
            ]
            for row in rows
        ]
    )
    correlation = np.corrcoef(weights.T, counts.T)[:3, 3:]
    assert (np.diag(correlation) > 0.3).all()
    assert (correlation[~np.eye(3, dtype=bool)] < 0).all()


def test_the_corpus_depends_on_the_seed_alone():
    def draw(seed):
        return grammar.sample_rows(
            np.random.default_rng(seed), grammar.all_prompts(), 5, objectives=OBJECTIVES, corpus=CorpusSpec()
        )

    assert draw(3) == draw(3) != draw(4)


def test_a_writer_who_never_strays_stays_with_the_topic():
    dice = random.Random(0)
    focused = CorpusSpec(stray_topic=0.0)
    for _ in range(50):
        response = grammar.sample_response(dice, LOCK, [1.0, 0.0], objectives=OBJECTIVES, corpus=focused)
        assert all(
            grammar.topic_of(LOCK) in grammar.sentences()[text].topics for text in grammar.split_sentences(response)
        )
