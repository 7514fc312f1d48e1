"""The check of a GPU: a part that hangs or breaks does not hide the next; its figures by hand; a rehearsal on CPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.bench.check import updates
from orchestrator.bench.check.models import SIZES
from orchestrator.bench.check.parts import EXPECTED, PARTS, Settings
from orchestrator.bench.check.trainings import differences, training_figures, write_smollm2
from orchestrator.bench.check.updates import LOADS, Load, useful_flops
from orchestrator.bench.turns import Part, measure, work
from orchestrator.data import load_prompts
from orchestrator.errors import RunFailed
from orchestrator.files import write_lines
from orchestrator.recipes import load_recipe

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = {
    "good": "import json, sys; json.dump({'ok': True, 'figures': {'speed': 2.5}}, open(sys.argv[1], 'w'))",
    "crash": "import sys; sys.exit('no room on the card')",
    "hang": "import subprocess, sys, time; c = subprocess.Popen(['sleep', '600']); "
    "open(sys.argv[2], 'w').write(str(c.pid)); time.sleep(600)",
}


def part(name: str, limit_s: float = 60) -> Part:
    return Part(name=name, limit_s=limit_s, work=lambda folder, settings: {})


def run(folder: Path, *parts: Part, total_s: float | None = 100.0) -> list[dict]:
    outcomes = measure(
        parts,
        folder,
        lambda part: [sys.executable, "-c", SCRIPTS[part.name], str(folder / f"{part.name}.json"), str(folder / "pid")],
        called="check",
        total_s=total_s,
    )
    assert json.loads((folder / "check.json").read_text()) == outcomes
    return outcomes


def test_a_part_that_crashes_or_hangs_is_told_and_the_next_one_runs(tmp_path, capsys):
    outcomes = run(tmp_path, part("crash"), part("hang", limit_s=3), part("good"))
    assert [outcome["ok"] for outcome in outcomes] == [False, False, True]
    assert outcomes[0]["error"] == "ended with 1: no room on the card"
    assert outcomes[1]["error"] == "not done within 3 s"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))  # what it started is ended with it
    told = capsys.readouterr().out
    assert "no room on the card" in told and told.rstrip().endswith("2.5")
    assert "2.5" in (tmp_path / "check.md").read_text()


def test_outcomes_of_other_parts_are_kept_beside_the_new_ones(tmp_path):
    old = {"part": "old", "ok": True, "seconds": 1.0, "figures": {}}
    measured = measure([], tmp_path, lambda part: [], called="check", total_s=None, before=[old])
    assert measured == [] and not (tmp_path / "check.json").exists()
    again = measure(
        [part("good")],
        tmp_path,
        lambda part: [sys.executable, "-c", SCRIPTS["good"], str(tmp_path / "good.json")],
        called="check",
        total_s=None,
        before=[old],
    )
    assert json.loads((tmp_path / "check.json").read_text()) == [old, *again]


def test_whoever_ends_the_measurement_ends_its_parts(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.test_check import part, run; "
        "run(Path(sys.argv[1]), part('hang', limit_s=300))"
    )
    measuring = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY)
    pid = tmp_path / "pid"
    for _ in range(600):
        if pid.is_file() and pid.read_text():
            break
        time.sleep(0.1)
    child = int(pid.read_text())
    measuring.terminate()
    assert measuring.wait(timeout=60) == 143
    assert not psutil.pid_exists(child)


def test_a_part_for_which_no_time_is_left_is_told_so(tmp_path):
    outcomes = run(tmp_path, part("good"), part("crash"), total_s=-1)
    assert [(outcome["ok"], outcome["error"]) for outcome in outcomes] == [(False, "not begun: no time left")] * 2
    assert run(tmp_path, part("good"))[0]["ok"]


def test_what_a_part_raises_is_its_outcome_on_one_line(tmp_path):
    def broken(folder, settings):
        raise RunFailed("first line\nsecond line")

    assert work(Part(name="broken", limit_s=1, work=broken), tmp_path, Settings(cpu=True)) == 1
    outcome = json.loads((tmp_path / "broken.json").read_text())
    assert (
        outcome["ok"] is False and outcome["error"].startswith("RunFailed: first line") and "\n" not in outcome["error"]
    )


def test_figures_that_differ_by_more_than_their_tolerance_are_named():
    expected = {"loss": (1.3, 0.1), "mip": (0.9, 0.2), "kl": (0.0, 1e-6)}
    assert differences({"loss": 1.35, "mip": 0.75, "kl": 0.0}, expected) == []
    assert differences({"loss": 1.5, "mip": float("nan")}, expected) == [
        "loss: must be 1.3 +- 0.1, got 1.5",
        "mip: must be 0.9 +- 0.2, got nan",
        "kl: must be 0 +- 1e-06, got None",
    ]


def test_every_figure_that_is_expected_of_the_miniature_is_one_that_a_run_gives(tmp_path):
    step = {"generated_tokens": 8, "sync_bytes": 4, "loss": 1.0, "identification_accuracy": 0.5, "weighted_reward": 0.1}
    step |= {f"seconds/{stage}": 1.0 for stage in ("step", "generate", "learn", "sync")}
    evaluation = {"response_length": 9.0, "mip": 0.5, "hypervolume": 9.0, "kl_to_start": 0.0}
    write_lines(tmp_path / "metrics.jsonl", [step | {"engine_mismatch": 0.01}, step | {"engine_mismatch": None}])
    with pytest.raises(RunFailed, match="2 steps and 0 evaluations"):
        training_figures(tmp_path)
    write_lines(tmp_path / "evaluations.jsonl", [evaluation, evaluation | {"mip": 0.7}])
    figures = training_figures(tmp_path)
    assert figures["tokens_per_second"] == 8.0 and figures["engine_mismatch"] == 0.01 and figures["mip_after"] == 0.7
    assert json.loads((REPOSITORY / EXPECTED).read_text()).keys() <= figures.keys()


def test_the_useful_operations_of_an_update_are_those_of_the_formula():
    shape = replace(SIZES["tiny"], layers=1, hidden=4, intermediate=8, heads=2, kv_heads=1, head_dim=2, vocabulary=10)
    assert shape.layer_parameters == 4 * 2 * (4 + 2) + 3 * 4 * 8  # queries, output, keys, values; gate, up, down
    load = Load(examples=1, micro_batch_tokens=64, prompt=6, response=2, lora=True)
    attention = 4 * 2 * 2 * 8 / 2
    assert useful_flops(shape, load, 100) == 3 * 2 * (100 * 144 + 8 * 40) + 4 * 100 * attention
    full = Load(examples=1, micro_batch_tokens=64, prompt=6, response=2, lora=False)
    assert useful_flops(shape, full, 1) - useful_flops(shape, load, 1) == 2 * (144 + 8 * 40)


def test_every_size_has_a_load():
    assert LOADS.keys() == SIZES.keys() == updates.LOADS.keys()


def test_all_parts_have_names_of_their_own_and_those_left_out_on_cpu_are_rehearsed_by_another():
    names = {part.name for part in PARTS}
    assert len(names) == len(PARTS)
    assert {part.rehearsed_by for part in PARTS} - {None} <= {part.name for part in PARTS if not part.rehearsed_by}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "machine,nothing"], "--parts: must be of machine, "),
        (["--smollm2", "/nowhere"], "no config.json"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, said):
    done = subprocess.run(
        ["deploy/gpu/check.sh", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and said in done.stderr


def test_the_recipe_that_a_part_writes_is_accepted_and_its_prompts_are_read(tmp_path):
    recipe = load_recipe(write_smollm2(tmp_path, tmp_path / "model", steps=2, response_tokens=8))
    training, heldout = (
        load_prompts(path, field=recipe.data.prompt_field) for path in (recipe.data.train, recipe.data.heldout)
    )
    assert len(training) >= recipe.loop.prompts_per_step and len(heldout) >= recipe.evaluate.prompts
    assert not set(training) & set(heldout)


@pytest.mark.full
def test_the_whole_check_is_rehearsed_on_cpu(tmp_path):
    done = subprocess.run(
        ["deploy/gpu/check.sh", "--cpu", "--output", str(tmp_path / "check")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {each["part"]: each for each in json.loads((tmp_path / "check" / "check.json").read_text())}
    assert outcomes.keys() == {part.name for part in PARTS if not part.rehearsed_by}
    assert outcomes["miniature"]["figures"]["engine_mismatch"] < 1e-3
    assert outcomes["smollm2"]["figures"]["kl_before"] == 0
    assert outcomes["rollout"]["figures"]["ratio"] > 0
