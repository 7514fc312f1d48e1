"""The benchmark of speed: both sides do the same arithmetic, its runs are recipes, its page says what was measured."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from orchestrator.bench.speed.bench import Asked, bench
from orchestrator.bench.speed.learners import Update, make_batch, padded_logprobs
from orchestrator.bench.speed.page import write_page
from orchestrator.bench.speed.parts import COSTS, PARTS, UPDATES, WORKS
from orchestrator.bench.speed.steps import measure_trl, recipe_tree
from orchestrator.bench.speed.subjects import SIZES, make_policy, write_prompts
from orchestrator.errors import BadInput
from orchestrator.files import read_lines
from orchestrator.inputs import load_tokenizer
from orchestrator.recipes import parse_recipe

REPOSITORY = Path(__file__).parents[1]
STEPS = {
    **{"prompts": 16, "prompt_tokens": 32, "answer_tokens": 128, "step_seconds": 4.0, "overlap_step_seconds": 2.5},
    **{"trl_step_seconds": 6.0, "trl_over_strict": 1.5, "trl_over_overlap": 2.4, "sync_mb": 70.0, "sync_seconds": 0.02},
    **{"memcpy_seconds": 0.01, "memcpy_over_sync": 0.5, "overlap_over_longer_stage": 1.06},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_padded_rectangles_and_single_sequences_say_the_same(models):
    policy = AutoModelForCausalLM.from_pretrained(make_policy("117k", models))
    batch = make_batch(Update(pairs=3, prompt=12, response=9, micro_batch_tokens=64), SIZES["117k"].vocabulary)
    sequences = [(example.prompts[0], response) for example in batch.examples for response in example.responses]
    with torch.no_grad():
        alone_S, padded_S = (padded_logprobs(policy, sequences, rows) for rows in (1, 4))
    assert alone_S.shape == (6,)
    torch.testing.assert_close(alone_S, padded_S, rtol=1e-5, atol=1e-4)


def test_a_batch_is_as_ragged_as_it_says():
    update = Update(pairs=40, prompt=40, response=16, micro_batch_tokens=64)
    batch = make_batch(update, 100)
    prompts = {len(example.prompts[0]) for example in batch.examples}
    responses = {len(response) for example in batch.examples for response in example.responses}
    assert (min(prompts), max(prompts)) == (30, 40) and (min(responses), max(responses)) == (4, 16)
    for example in batch.examples:
        plus, minus = example.prompts
        assert plus[:-4] == minus[:-4] and plus != minus


@pytest.mark.parametrize("work", [*WORKS.values(), COSTS, replace(COSTS, objectives=5, one_vector=True, engines=2)])
def test_what_is_measured_is_a_recipe(work, models, tmp_path):
    small = replace(work, size="117k")  # SmolLM2's weights may not be here
    recipe = parse_recipe(recipe_tree(models, tmp_path, small), where="speed")
    assert recipe.loop.prompts_per_step == work.prompts and len(recipe.objectives) == work.objectives
    assert recipe.rollout.dtype == recipe.learner.dtype == "float32"
    assert (recipe.preferences.fixed is not None) == work.one_vector


def test_prompts_have_the_length_that_was_asked_for(models, tmp_path):
    tokenizer = load_tokenizer(str(make_policy("117k", models)))
    rows = read_lines(write_prompts(tmp_path / "p.jsonl", count=50, tokens=40, size="117k"))
    lengths = [len(tokenizer(row["prompt"]).input_ids) for row in rows]
    assert min(lengths) >= 30 and max(lengths) == 40 and len({row["prompt"] for row in rows}) == 50


def test_the_page_has_every_ratio_and_names_what_failed():
    outcomes = [
        {"part": "machine", "ok": True, "figures": {"cpus": 2, "processor": "Some CPU", "torch": "2.13.0"}},
        {"part": "steps-17M", "ok": True, "figures": STEPS},
        {"part": "steps-135M", "ok": False, "error": "BadInput: no weights"},
        {
            "part": "costs",
            "ok": True,
            "figures": {
                "size": "17M",
                "stages": {
                    "one vector": {"step": 2.0, "generate": 1.0, "score": 0.1, "learn": 0.5, "sync": 0.0},
                    "5 objectives": {"step": 2.2, "generate": 1.0, "score": 0.25, "learn": 0.5, "sync": 0.0},
                },
            },
        },
    ]
    page = write_page(outcomes)
    assert "2 cores of Some CPU, torch 2.13.0" in page
    assert "| 17M | 16 x 2, 32 + 128 tokens | 6.000 | 4.000 | 2.500 | 1.50 | 2.40 |" in page
    assert "| 17M | 70.0 | 0.0200 | 0.0100 | 0.50 | 1.06 |" in page
    assert "| 5 objectives | 1.10 | 1.00 | 2.50 | 1.00 | - |" in page
    assert "`steps-135M` failed: BadInput: no weights" in page
    assert page.count("Not measured.") == 2  # learner and rollout


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="TRL is installed here")
def test_without_trl_its_columns_are_empty(models, tmp_path):
    assert measure_trl(models, tmp_path, WORKS["117k"], None) is None
    figures = {key: value for key, value in STEPS.items() if "trl" not in key}
    page = write_page([{"part": "steps-17M", "ok": True, "figures": figures}])
    assert "| - | 4.000 | 2.500 | - | - |" in page and "TRL (not installed)" in page


def test_a_part_or_a_trl_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"--parts: must be of machine, .*, got 'speed'"):
        bench(Asked(folder=tmp_path, parts=("speed",)))
    with pytest.raises(BadInput, match="--trl: must be a folder that TRL was installed into"):
        bench(Asked(folder=tmp_path, trl=tmp_path))


def test_every_update_has_a_policy():
    assert {name.split()[0] for name in UPDATES} == {*SIZES, "135M"} == set(WORKS)
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert {part.rehearsed_by for part in PARTS} - {None} <= {part.name for part in PARTS if not part.rehearsed_by}


@pytest.mark.full
def test_the_whole_benchmark_at_its_smallest(tmp_path):
    page = tmp_path / "performance.md"
    command = [sys.executable, "-m", "orchestrator", "bench", "--quick", "--folder", str(tmp_path / "bench")]
    done = subprocess.run(
        [*command, "--output", str(page)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcomes = {each["part"]: each for each in json.loads((tmp_path / "bench" / "bench.json").read_text())}
    assert outcomes.keys() == {part.name for part in PARTS if part.rehearsed_by is None}
    assert outcomes["learner-17M"]["figures"]["padded_over_product"] > 0
    assert "Not measured" not in page.read_text() and "failed" not in page.read_text()
