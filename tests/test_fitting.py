import gzip
import hashlib
import json
import os
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.config import LoraSection
from orchestrator.cli import main
from orchestrator.errors import BadInput, RunFailed
from orchestrator.tasks.dialogues.prepare import PrepareOptions
from orchestrator.tasks.fitting import bradley_terry, models, trainer
from orchestrator.tasks.fitting.bradley_terry import fit_reward, run_reward_fit
from orchestrator.tasks.fitting.config import Architecture, ByteLevelBPE, Optimization, PolicyFitConfig, RewardFitConfig
from orchestrator.tasks.fitting.devices import leave_one_gpu, require_one
from orchestrator.tasks.fitting.supervised import (
    _collator,
    _contrastive_loss,
    _encode,
    _paired,
    _response_loss,
    fit_policy,
    run_policy_fit,
)
from rewards.config import PreferencesConfig
from rewards.environment import native_dtype

SMALL = Architecture(hidden_size=32, num_layers=1, num_heads=1, intermediate_size=48, max_positions=64)
TOKENIZER = ByteLevelBPE(vocab_size=280)
FEW_STEPS = Optimization(steps=3, batch_size=4, learning_rate=1e-2)
ADAPTED = {
    "architecture": None,
    "tokenizer": None,
    "lora": LoraSection(rank=4, alpha=8, target_modules=("q_proj", "v_proj")),
}
ODD_TEXT = "naïve 🙂 漢字\n\n\tHuman: {prompt} <eos?> \u200b"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _policy_config(output, **changes):
    values = {
        "output": str(output),
        "architecture": SMALL,
        "tokenizer": TOKENIZER,
        "optimization": FEW_STEPS,
        "max_length": 64,
        "device": "cpu",
    }
    return PolicyFitConfig(**{**values, **changes})


def _reward_config(output, **changes):
    values = {
        "output": str(output),
        "architecture": SMALL,
        "tokenizer": TOKENIZER,
        "optimization": FEW_STEPS,
        "max_length": 64,
        "device": "cpu",
    }
    return RewardFitConfig(**{**values, **changes})


QUESTIONS = [{"prompt": f"{word}?", "response": f" {word}!"} for word in ("red", "blue", "green", "black")] * 8
PAIRS = [
    {"prompt": f"day {day}:", "chosen": f" {fine} fine", "rejected": f" {fine} awful"}
    for day in range(12)
    for fine in ("quite", "rather")
]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adam_betas": (1.5, 0.9)}, "adam_betas.0\n  Input should be less than 1"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas.1\n  Input should be less than 1"),
        ({"batch_size": True}, "batch_size takes numbers, not true or false, got True"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        Optimization(**{"steps": 3, "batch_size": 4, "learning_rate": 1e-2, **changes})


@pytest.mark.parametrize("objectives", [("a", "a"), ("",), ("é",), ("Help ful",)])
def test_objectives_of_a_fit_have_names_that_a_recipe_takes_too(tmp_path, objectives):
    with pytest.raises(ValidationError, match="objectives"):
        _policy_config(tmp_path, objectives=objectives)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**70])
def test_a_seed_is_one_that_every_generator_takes(tmp_path, seed):
    for config in (partial(_policy_config, tmp_path), partial(_reward_config, tmp_path), PrepareOptions):
        with pytest.raises(ValidationError, match=r"seed\n  Input should be (less|greater) than or equal to"):
            config(seed=seed)
        assert config(seed=2**31 - 1).seed == 2**31 - 1


def test_a_policy_learns_its_rows_and_loads_as_a_plain_folder(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learned = Optimization(steps=60, batch_size=16, learning_rate=1e-2, warmup_steps=5, group_by_length=True)
    report = fit_policy(_policy_config(tmp_path / "policy", optimization=learned, heldout_fraction=0.25), QUESTIONS)
    assert report.heldout_rows == 8
    assert report.loss < 0.2
    assert report.heldout_accuracy is not None
    assert report.heldout_accuracy > 0.9
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert model.config.use_cache
    prompt = tokenizer("green?", return_tensors="pt")["input_ids"]
    answer = model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True) == " green!"


def test_a_fit_writes_only_the_model_and_prints_nothing(tmp_path, capfd):
    lines: list[str] = []
    fit_policy(_policy_config(tmp_path / "policy"), QUESTIONS, progress=lines.append)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [line.split(",")[0] for line in lines] == [f"policy: {step} of 3 steps" for step in (1, 2, 3)]
    assert capfd.readouterr().out == ""


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    def digest(name, **changes):
        fit_policy(_policy_config(tmp_path / name, **changes), QUESTIONS)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    assert digest("one") == digest("two") != digest("three", seed=1)


def test_a_fit_leaves_the_global_random_state_of_new_models_alone(tmp_path):
    config = _policy_config(tmp_path / "policy")
    tokenizer = models.make_tokenizer(config, ["some text"])
    before = torch.random.get_rng_state()
    models.make_policy(config, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_with_preferences_are_written_by_the_renderer_and_only_responses_are_learned(tmp_path):
    config = _policy_config(tmp_path / "policy", objectives=("short", "kind"))
    tokenizer = models.make_tokenizer(config, ["some text"])
    by_order = {"prompt": "Hi", "response": " Yo", "preference": [0.3, 0.7]}
    by_name = {**by_order, "preference": {"kind": 0.7, "short": 0.3}}
    (first, second), _ = _encode(config, tokenizer, [by_order, by_name])
    assert first == second
    assert tokenizer.decode(first["input_ids"]) == "Human: Hi <short> 0.3 <kind> 0.7 Assistant: Yo<eos>"
    learned = [token for token in first["labels"] if token != trainer.IGNORED_LABEL]
    assert tokenizer.decode(learned) == " Yo<eos>"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "response": "Yo", "preference": [0.5, 0.4]}, "sum to 1"),
        ({"prompt": "Hi", "response": "Yo", "preference": [1.0]}, "one weight for each of short, kind"),
        ({"prompt": "Hi", "response": "Yo", "preference": {"short": 1.0}}, "no weight for objective 'kind'"),
        ({"prompt": "Hi", "response": "", "preference": [0.3, 0.7]}, "at least one token"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, said, tmp_path):
    config = _policy_config(tmp_path / "policy", objectives=("short", "kind"))
    with pytest.raises(BadInput, match=said):
        fit_policy(config, [row] * 4)


def test_preferences_without_objectives_are_refused(tmp_path):
    with pytest.raises(BadInput, match="objectives: must be given"):
        fit_policy(_policy_config(tmp_path / "policy"), [{"prompt": "a", "response": "b", "preference": [1.0]}])


def test_long_rows_lose_the_start_of_the_prompt_first(tmp_path):
    from orchestrator.tasks.fitting.supervised import _encode

    config = _policy_config(tmp_path / "policy", max_length=8)
    tokenizer = models.make_tokenizer(config, [])
    rows = [
        {"prompt": "abcdef", "response": "uvwxyz"},
        {"prompt": "abc", "response": "rstuvwxyz"},
        {"prompt": "abc", "response": "xyz"},
    ]
    (shortened, cut, whole), count = _encode(config, tokenizer, rows)
    assert tokenizer.decode(shortened["input_ids"]) == "fuvwxyz<eos>"
    assert tokenizer.decode(cut["input_ids"]) == "crstuvwx"
    assert tokenizer.decode(whole["input_ids"]) == "abcxyz<eos>"
    assert count == 2


def test_a_byte_level_tokenizer_gives_back_every_text(tmp_path):
    from transformers import AutoTokenizer

    settings = ByteLevelBPE(vocab_size=300, special_words=("Human:",))
    models.train_byte_level_bpe(settings, ["a plain text, trained on"] * 5).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer(ODD_TEXT)["input_ids"], skip_special_tokens=True) == ODD_TEXT
    assert len(tokenizer("Human:")["input_ids"]) == 1
    assert len(tokenizer) <= 300


def test_a_fit_can_start_from_a_folder(tmp_path):
    fit_policy(_policy_config(tmp_path / "first"), QUESTIONS)
    again = {"model": str(tmp_path / "first"), "architecture": None, "tokenizer": None}
    report = fit_policy(_policy_config(tmp_path / "second", **again), QUESTIONS)
    assert report.output == str(tmp_path / "second")
    classifier = fit_reward(_reward_config(tmp_path / "third", **again), PAIRS)
    assert classifier.steps == 3


def test_a_reward_model_learns_its_pairs_and_serves_as_a_scorer(tmp_path):
    from rewards.judge_sections import HuggingFaceScorerConfig
    from rewards.judges import build_scorer

    learned = Optimization(steps=30, batch_size=4, learning_rate=1e-2, warmup_steps=3)
    report = fit_reward(
        _reward_config(tmp_path / "judge", optimization=learned, template="{prompt}{response}", heldout_fraction=0.25),
        PAIRS,
    )
    assert (report.rows, report.heldout_rows) == (18, 6)
    assert report.heldout_accuracy == 1.0
    scorer = build_scorer(HuggingFaceScorerConfig(model=str(tmp_path / "judge"), template="{prompt}{response}"))
    good, bad = scorer.score(["day 40:"] * 2, [" quite fine", " quite awful"])
    assert good > bad


def test_reward_fits_are_deterministic(tmp_path):
    def digest(name):
        fit_reward(_reward_config(tmp_path / name), PAIRS)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    assert digest("one") == digest("two")


def test_all_pairs_of_a_prompt_are_one_batch_element_and_each_response_is_read_once(tmp_path):
    answers = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
        {"prompt": "p", "chosen": "b", "rejected": "c"},
        {"prompt": "p", "chosen": "a", "rejected": "c"},
    ]
    config = _reward_config(tmp_path / "judge", template="{prompt}{response}")
    tokenizer = models.make_tokenizer(config, [])
    groups = bradley_terry._by_prompt(answers)
    assert [(group.prompt, group.texts, group.pairs) for group in groups] == [
        ("p", ["a", "b", "c"], [(0, 1), (1, 2), (0, 2)]),
        ("q", ["x", "y"], [(0, 1)]),
    ]
    batch = bradley_terry._collator(tokenizer.pad_token_id)(bradley_terry._encode(config, tokenizer, groups)[0])
    assert tokenizer.batch_decode(batch["input_ids"]) == ["pa", "pb", "pc", "qx", "qy"]
    assert batch["pairs"].tolist() == [[0, 1], [1, 2], [0, 2], [3, 4]]


def test_the_bradley_terry_loss_equals_the_hand_computed_one():
    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask, use_cache):
            rewards = input_ids[:, :1].float()
            return type("Output", (), {"logits": rewards})

    batch = {
        "input_ids": torch.tensor([[1], [3], [0]]),
        "attention_mask": torch.ones(3, 1),
        "pairs": torch.tensor([[1, 0], [2, 1]]),
        "probabilities": torch.tensor([1.0, 0.75]),
    }
    agree, differ = np.log1p(np.exp(-2.0)), 0.75 * np.log1p(np.exp(3.0)) + 0.25 * np.log1p(np.exp(-3.0))
    expected = np.mean([agree, differ])
    assert float(bradley_terry._bradley_terry(Fixed(), batch)) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.4, 1.2, "sure", None])
def test_a_probability_that_is_none_is_refused(value):
    with pytest.raises(BadInput, match=r"probability must lie in \[0.5, 1\]"):
        bradley_terry._by_prompt([{"prompt": "p", "chosen": "a", "rejected": "b", "probability": value}])


BY_PREFERENCE = [
    {"prompt": f"{word}?", "response": f" {answer}!", "preference": [float(low), float(1 - low)]}
    for word in ("red", "blue", "green", "black")
    for answer, low in (("no", 1), ("yes", 0))
]


def test_a_contrast_teaches_which_answer_goes_with_which_preference(tmp_path):
    steps = Optimization(steps=100, batch_size=8, learning_rate=1e-2)
    section = {
        "objectives": ("short", "kind"),
        "preferences": PreferencesConfig(min_distance=0.5),
        "optimization": steps,
    }

    def gap(name, contrast):
        """Mean of log pi under a row's own preference minus that under the other."""
        config = _policy_config(tmp_path / name, contrast=contrast, heldout_fraction=0, **section)
        fit_policy(config, BY_PREFERENCE * 2)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name).requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        swapped = [{**row, "preference": row["preference"][::-1]} for row in BY_PREFERENCE]
        own, other = (
            [
                -float(_response_loss(model, _collator(0)([each]))) * sum(label >= 0 for label in each["labels"])
                for each in _encode(config, tokenizer, rows)[0]
            ]
            for rows in (BY_PREFERENCE, swapped)
        )
        return np.mean(np.subtract(own, other))

    assert gap("contrast", 1.0) > max(1.5, 2 * gap("plain", 0.0))


def test_the_contrastive_loss_equals_the_hand_computed_one():
    class Fixed(torch.nn.Module):
        """Logits that depend on the token before alone."""

        def forward(self, input_ids, attention_mask, use_cache):
            table = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.5, 0.0, 0.0]])
            return SimpleNamespace(logits=table[input_ids])

    own, other = ({"input_ids": [1, *ids], "labels": [-100, *ids]} for ids in ([2, 1], [1, 1]))
    batch = _paired(_collator(0))([{**own, "other": other}])
    after_1 = np.log(np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum())
    after_2 = np.log(np.exp([0.5, 0, 0]) / np.exp([0.5, 0, 0]).sum())
    own_logprob, other_logprob = after_1[2] + after_2[1], 2 * after_1[1]
    expected = -own_logprob / 2 + 0.7 * np.log1p(np.exp(other_logprob - own_logprob))
    assert float(_contrastive_loss(Fixed(), batch, contrast=0.7)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "objectives", "said"),
    [
        (
            [{"prompt": "a", "response": "b"}] * 3 + [{"prompt": "a", "response": "b", "preference": [0.3, 0.7]}],
            ("x", "y"),
            "contrast needs a preference in every row, 3 have none",
        ),
        (
            [{"prompt": "a", "response": "b", "preference": [1.0]}] * 4,
            ("x",),
            r"contrast: needs at least two .*\['x'\]",
        ),
    ],
)
def test_a_contrast_that_has_nothing_to_tell_apart_is_refused(rows, objectives, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        fit_policy(_policy_config(tmp_path / "out", contrast=1.0, objectives=objectives), rows)


@pytest.mark.parametrize("key", ["preferences", "weights"])
def test_objectives_that_no_row_weighs_are_refused(key, tmp_path):
    rows = [{**row, key: [0.3, 0.7]} for row in QUESTIONS]
    with pytest.raises(BadInput, match=r"^rows: objectives need rows with a preference, got none in 31 rows$"):
        fit_policy(_policy_config(tmp_path / "out", objectives=("short", "kind"), heldout_fraction=0), rows[:31])


def test_rows_that_weigh_no_objectives_among_others_are_told(tmp_path):
    rows: list[trainer.Row] = [*QUESTIONS[:-1], {**QUESTIONS[-1], "preference": [0.3, 0.7]}]
    lines: list[str] = []
    fit_policy(_policy_config(tmp_path / "out", objectives=("short", "kind")), rows, progress=lines.append)
    assert lines[0] == "rows: 31 of 32 rows have no preference and are read as they are"


DIVERGES = Optimization(steps=3, batch_size=4, learning_rate=1e30, schedule="constant")


@pytest.mark.parametrize(("fit", "config", "rows"), [
    (fit_policy, _policy_config, QUESTIONS), (fit_reward, _reward_config, PAIRS)
])  # fmt: skip
def test_a_fit_that_diverges_fails_and_saves_nothing(fit, config, rows, tmp_path):
    with pytest.raises(RunFailed, match=r"(loss|grad_norm) of step 2 must be finite, got (nan|inf); nothing was saved"):
        fit(config(tmp_path / "out", optimization=DIVERGES), rows)
    assert list(tmp_path.iterdir()) == []


def test_a_fit_of_a_model_that_is_not_finite_fails(base, tmp_path):
    def broken():
        model = _load(base)
        model.model.norm.weight.data[3] = float("nan")
        return model

    with pytest.raises(RunFailed, match=r"^policy: loss of step 1 must be finite, got nan"):
        fit_policy(_policy_config(tmp_path / "out", model=str(base), architecture=None), QUESTIONS, model=broken())
    with pytest.raises(RunFailed, match=r"out: the largest weight of model\.norm\.weight must be finite, got nan"):
        trainer.save(broken(), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_held_out_loss_that_is_not_finite_fails(tmp_path):
    huge = Optimization(steps=1, batch_size=4, learning_rate=1e38, schedule="constant")
    with pytest.raises(RunFailed, match=r"^held-out loss must be finite, got nan"):
        fit_policy(_policy_config(tmp_path / "out", optimization=huge, heldout_fraction=0.25), QUESTIONS)
    assert list(tmp_path.iterdir()) == []


def test_the_command_of_a_fit_that_diverges_ends_with_1(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    lines = [
        f"data: {tmp_path}/rows.jsonl",
        f"output: {tmp_path}/policy",
        "architecture: {hidden_size: 32, num_layers: 1, num_heads: 1, intermediate_size: 48}",
        "tokenizer: {vocab_size: 280}",
        "device: cpu",
        "optimization: {steps: 3, batch_size: 4, learning_rate: 1.0e+30}",
    ]
    (tmp_path / "fit.yaml").write_text("\n".join(lines))
    assert main(["fit-policy", str(tmp_path / "fit.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mi-epo: policy: ") and said.count("\n") == 1


@pytest.mark.parametrize("command", ["fit-policy", "fit-reward"])
def test_rows_to_measure_on_are_not_those_to_fit(command, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({**QUESTIONS[0], **PAIRS[0]}) + "\n")
    (tmp_path / "same.jsonl").symlink_to(tmp_path / "rows.jsonl")
    config = {
        "data": "rows.jsonl",
        "heldout": "same.jsonl",
        "output": str(tmp_path / "out"),
        "architecture": SMALL.model_dump(),
        "tokenizer": {"vocab_size": 280},
        "optimization": {"steps": 1, "batch_size": 1, "learning_rate": 0.1},
    }
    (tmp_path / "fit.yaml").write_text(json.dumps(config))
    assert main([command, str(tmp_path / "fit.yaml")]) == 2
    rule = f"heldout: must be another file than data, got '{tmp_path / 'same.jsonl'}' for both"
    assert capsys.readouterr().err == f"mi-epo: {tmp_path / 'fit.yaml'}: {rule}\n"


def test_a_reward_model_s_template_must_leave_room_for_a_response(tmp_path):
    config = _reward_config(tmp_path / "out", max_length=2, template="Human: {prompt} Assistant: {response}")
    with pytest.raises(BadInput, match=r"max_length must leave room for a response beside the template's .* got 2$"):
        fit_reward(config, PAIRS)
    assert list(tmp_path.iterdir()) == []


def test_micro_batches_give_the_same_step_as_the_whole_batch(tmp_path):
    from safetensors.torch import load_file

    alike = [{"prompt": f"{word}?", "response": f" {word}!"} for word in ("red", "tan", "ash", "sky")] * 2

    def weights(name, micro_batch_size):
        one_step = Optimization(steps=1, batch_size=4, learning_rate=1e-2, micro_batch_size=micro_batch_size)
        config = _policy_config(tmp_path / name, optimization=one_step, heldout_fraction=0)
        tokenizer = models.make_tokenizer(_policy_config("x", tokenizer=ByteLevelBPE(vocab_size=260)), [])
        fit_policy(config, alike, tokenizer=tokenizer)
        return load_file(tmp_path / name / "model.safetensors")

    whole, halves = weights("whole", None), weights("halves", 2)
    for name, tensor in whole.items():
        assert torch.allclose(tensor, halves[name], atol=2e-4), name


def test_the_policy_command_reads_yaml_and_compressed_rows(tmp_path, capsys):
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "fit.yaml").write_text(
        f"data: {tmp_path}/rows.jsonl.gz\noutput: {tmp_path}/policy\nmax_length: 64\n"
        "architecture: {hidden_size: 32, num_layers: 1, num_heads: 1, intermediate_size: 48}\n"
        "tokenizer: {vocab_size: 280}\ndevice: cpu\n"
        "optimization: {steps: 2, batch_size: 4, learning_rate: 0.01}\n"
    )
    report = run_policy_fit(tmp_path / "fit.yaml")
    assert (tmp_path / "policy" / "model.safetensors").is_file()
    assert "2 steps on 31 rows" in str(report)
    with pytest.raises(BadInput, match="already holds a model"):
        run_policy_fit(tmp_path / "fit.yaml")


def test_the_reward_command_measures_on_a_file_of_its_own(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    (tmp_path / "fit.yaml").write_text(
        f"data: {tmp_path}/train.jsonl\nheldout: {tmp_path}/test.jsonl\noutput: {tmp_path}/judge\n"
        "architecture: {hidden_size: 32, num_layers: 1, num_heads: 1, intermediate_size: 48}\n"
        "tokenizer: {vocab_size: 280}\ndevice: cpu\n"
        "optimization: {steps: 2, batch_size: 4, learning_rate: 0.01}\n"
    )
    report = run_reward_fit(tmp_path / "fit.yaml")
    assert (report.rows, report.heldout_rows) == (24, 24)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("learning: 1", "learning: unknown key"),
        ("seed: -1", "seed: .*got -1"),
        ("model: other", "exactly one of model and architecture"),
        ("template: no placeholder", "must contain {response}"),
        ("data: null", "data: "),
        ("optimization: {steps: 2, batch_size: 5, micro_batch_size: 2, learning_rate: 0.1}", "multiple of micro_batch"),
    ],
)
def test_a_bad_config_is_one_line_with_place_and_rule(change, said, tmp_path):
    keys = {
        "data": "rows.jsonl",
        "output": "judge",
        "architecture": "{hidden_size: 32, num_layers: 1, num_heads: 1, intermediate_size: 48}",
        "tokenizer": "{vocab_size: 280}",
        "optimization": "{steps: 2, batch_size: 4, learning_rate: 0.01}",
    }
    key, value = change.split(": ", 1)
    (tmp_path / "fit.yaml").write_text("".join(f"{k}: {v}\n" for k, v in {**keys, key: value}.items()))
    with pytest.raises(BadInput, match=said) as caught:
        run_reward_fit(tmp_path / "fit.yaml")
    assert "fit.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_rows_are_named_by_file_and_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "", "response": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(BadInput, match=r"rows\.jsonl:2: 'response' must be a non-empty text"):
        trainer.load_rows(str(file), ("prompt", "response"))


def test_a_folder_without_a_model_is_named(tmp_path):
    config = _policy_config(tmp_path / "out", model=str(tmp_path), architecture=None, tokenizer=None)
    with pytest.raises(BadInput, match="tokenizer: no tokenizer could be loaded from"):
        fit_policy(config, QUESTIONS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder whose policy gives each question the answer of the next one."""
    folder = tmp_path_factory.mktemp("fitting") / "base"
    others = [{**row, "response": after["response"]} for row, after in pairwise(QUESTIONS)]
    steps = Optimization(steps=60, batch_size=16, learning_rate=1e-2, warmup_steps=5)
    fit_policy(_policy_config(folder, optimization=steps, heldout_fraction=0), others)
    return folder


def _load(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


def _files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_adapters_change_their_targets_alone_and_leave_a_plain_model(base, tmp_path):
    from safetensors.torch import load_file

    steps = Optimization(steps=40, batch_size=16, learning_rate=2e-2)
    lines: list[str] = []
    trained = _load(base)
    report = fit_policy(
        _policy_config(tmp_path / "policy", model=str(base), optimization=steps, **ADAPTED),
        QUESTIONS,
        model=trained,
        progress=lines.append,
    )
    assert report.loss < 0.6 * float(lines[0].partition("loss ")[2].split(",")[0])
    assert _files(tmp_path / "policy") == _files(base)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "policy"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.0.self_attn.{target}.weight" for target in ("q_proj", "v_proj")}
    tokens = torch.arange(8)[None]
    loaded = _load(tmp_path / "policy")
    assert torch.equal(loaded(tokens).logits, trained(tokens).logits)
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_merged_adapters_answer_as_they_did_apart(base, tmp_path):
    config = _policy_config(tmp_path / "policy", model=str(base), **{**ADAPTED, "lora": LoraSection(rank=4)})
    adapted = models.add_adapters(_load(base), config.lora, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.arange(8)[None]
    apart = adapted(tokens).logits
    merged = models.merge_adapters(adapted)
    trainer.save(merged, models.make_tokenizer(config, []), tmp_path / "policy")
    together = _load(tmp_path / "policy")(tokens).logits
    assert torch.allclose(apart, together, atol=1e-5)
    assert not torch.allclose(apart, _load(base)(tokens).logits, atol=1e-2)


def test_adapters_are_deterministic_and_recomputed_activations_change_nothing(base, tmp_path):
    steps = FEW_STEPS.model_copy(update={"micro_batch_size": 2})

    def digest(name, **changes):
        optimization = steps.model_copy(update=changes)
        fit_policy(_policy_config(tmp_path / name, model=str(base), optimization=optimization, **ADAPTED), QUESTIONS)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    plain = digest("one")
    assert plain == digest("two") == digest("recomputed", gradient_checkpointing=True)


def test_a_bfloat16_base_is_trained_by_float32_adapters_and_saved_in_bfloat16(base, tmp_path):
    from safetensors.torch import load_file

    config = _policy_config(tmp_path / "policy", model=str(base), dtype="bfloat16", **ADAPTED)
    adapted = models.add_adapters(models.make_policy(config, None), config.lora, config)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}

    report = fit_policy(config, QUESTIONS)
    assert np.isfinite(report.loss)
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert _load(tmp_path / "policy", dtype="auto").dtype == torch.bfloat16
    assert {
        name
        for name, tensor in load_file(base / "model.safetensors").items()
        if not torch.equal(tensor.bfloat16(), weights[name])
    } == {f"model.layers.0.self_attn.{target}.weight" for target in ("q_proj", "v_proj")}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("nonsense",), "must be modules of the model, got 'nonsense'"),
        (("q_proj", "proj"), "must be modules of the model, got 'proj'"),
        (("q_proj", "input_layernorm"), "LlamaRMSNorm.* is not supported"),
        (("lm_head",), "'lm_head' shares its matrix"),
        (("embed_tokens", "q_proj"), "'model.embed_tokens' shares its matrix"),
    ],
)
def test_an_adapter_where_the_model_can_have_none_is_refused(targets, said, tmp_path):
    lora = LoraSection(target_modules=targets)
    with pytest.raises(BadInput, match=f"^lora.target_modules: .*{said}") as caught:
        fit_policy(_policy_config(tmp_path / "policy", lora=lora), QUESTIONS)
    assert "\n" not in str(caught.value)


def test_the_policy_command_reads_adapters_and_epochs(base, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    lines = [
        f"data: {tmp_path}/rows.jsonl",
        f"output: {tmp_path}/policy",
        f"model: {base}",
        "dtype: bfloat16",
        "lora: {rank: 2, alpha: 4, dropout: 0}",
        "device: cpu",
        "max_length: 64",
        "optimization: {epochs: 1.5, batch_size: 8, learning_rate: 0.01}",
    ]
    (tmp_path / "fit.yaml").write_text("\n".join(lines))
    told: list[str] = []
    assert "6 steps on 31 rows" in str(run_policy_fit(tmp_path / "fit.yaml", told.append))
    assert told[-1].startswith("policy: 6 of 6 steps, loss ") and capsys.readouterr().out == ""
    (tmp_path / "fit.yaml").write_text("\n".join(line for line in lines if not line.startswith("lora")))
    with pytest.raises(BadInput, match=r"fit\.yaml: .*dtype must be float32 without lora, got bfloat16"):
        run_policy_fit(tmp_path / "fit.yaml")


@pytest.mark.parametrize(
    ("given", "left"),
    [({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3,5"}, "3"), ({"CUDA_VISIBLE_DEVICES": ""}, "")],
)
def test_a_fit_leaves_one_gpu_visible(given, left):
    leave_one_gpu(given)
    assert given == {"CUDA_VISIBLE_DEVICES": left}


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_a_launcher_keeps_the_gpus_that_it_has_dealt_out(name):
    environment = {name: "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    leave_one_gpu(environment)
    assert environment == {name: "1", "CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    "arguments",
    [["fit-policy", "fit.yaml"], ["fit-reward", "fit.yaml"]],
)
def test_the_commands_leave_one_gpu_visible(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert main(arguments) == 2  # no such file
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_what_would_multiply_the_batch_is_refused():
    require_one({"WORLD_SIZE": "1"}, gpus=1)
    with pytest.raises(BadInput, match="a fit is one process, got WORLD_SIZE=4"):
        require_one({"WORLD_SIZE": "4"}, gpus=1)
    with pytest.raises(BadInput, match="a fit uses one GPU, got 8 visible ones"):
        require_one({}, gpus=8)


@pytest.mark.parametrize(
    ("bf16", "gpus", "mixed"),
    [
        *[(None, 0, False), (None, 1, True), (False, 1, False), (True, 0, True)],
        *[("native", 0, native_dtype() == "bfloat16"), ("native", 1, True)],
    ],
)
def test_precision_is_mixed_on_a_gpu_unless_the_config_says_otherwise(bf16, gpus, mixed, tmp_path):
    optimization = FEW_STEPS.model_copy(update={"bf16": bf16})
    config = _policy_config(tmp_path / "policy", optimization=optimization)
    assert trainer._arguments(config, 3, gpus=gpus).bf16 is mixed


def test_precision_may_be_mixed_where_no_gpu_is_found():
    optimization = FEW_STEPS.model_copy(update={"bf16": True})
    arguments = trainer._arguments(_policy_config("out", optimization=optimization, device="auto"), 3, gpus=0)
    assert arguments.bf16 and arguments.use_cpu


@pytest.mark.parametrize("length", [{}, {"steps": 2, "epochs": 1}])
def test_a_fit_has_one_length(length):
    with pytest.raises(ValueError, match="exactly one of steps and epochs"):
        Optimization(batch_size=4, learning_rate=0.1, **length)
