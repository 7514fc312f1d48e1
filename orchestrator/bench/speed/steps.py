"""Whole steps of short runs, beside TRL's on the same work; what a step costs by what is asked of it."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.bench.check.machine import fastest_s
from orchestrator.bench.check.trainings import run_training
from orchestrator.bench.speed.subjects import OBJECTIVES, make_judges, make_policy, write_prompts
from orchestrator.errors import RunFailed
from orchestrator.files import last_lines, read_lines, replace_text
from rewards.environment import whole_threads

WARM_UP = 2
"""Steps of a run that are not counted."""
PROMPTS = 64
W_TOKENS = 12
"""Room for the text of w, by any of the tokenizers."""
TEMPLATE = "{prompt} {weights}"
STAGES = ("step", "generate", "score", "learn", "sync")
TRL = Path(__file__).with_name("beside_trl.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A short run. Example: Work(size="17M", prompts=16, prompt_tokens=32, answer_tokens=128, steps=8)"""

    size: str
    prompts: int
    """A step, each answered twice."""
    prompt_tokens: int
    answer_tokens: int
    steps: int
    method: str = "mo-odpo"
    objectives: int = 2
    engines: int = 1
    one_vector: bool = False
    """Every prompt of the run under the same w, in place of a w of its own."""
    overlap: bool = False
    """The next step's answers are sampled during the update, by the policy before it."""


def measure_steps(models: Path, folder: Path, work: Work) -> dict[str, Any]:
    """Medians of a run's seconds in each stage, the bytes of a sync, and the seconds of copying as many in memory.

    Args:
        models: where policies and judges are or will be made.
        folder: of this run.
    """
    run, recipe = folder / "run", folder / "recipe.yaml"
    replace_text(recipe, json.dumps(recipe_tree(models, folder, work), indent=1))  # which is YAML too
    run_training(str(recipe), {}, run)
    metrics = read_lines(run / "metrics.jsonl")[WARM_UP:]
    if not metrics:
        raise RunFailed(f"{run}: fewer than {WARM_UP + 1} steps were done")
    figures: dict[str, Any] = asdict(work)
    for stage in STAGES:
        figures[f"{stage}_seconds"] = statistics.median(record[f"seconds/{stage}"] for record in metrics)
    figures["sync_mb"] = max(record["sync_bytes"] for record in metrics) / 1e6
    figures["memcpy_seconds"] = _memcpy_seconds(max(record["sync_bytes"] for record in metrics))
    figures["generated_tokens"] = statistics.median(record["generated_tokens"] for record in metrics)
    return figures


def measure_beside_trl(models: Path, folder: Path, work: Work, trl: Path | None) -> dict[str, Any]:
    """The same steps by this project, strictly on-policy and with overlap, and by TRL where it is installed.

    Args:
        trl: folder that TRL was installed into (`pip install --target`); None: where Python looks by itself.
    """
    strict = measure_steps(models, folder / "strict", work)
    overlap = measure_steps(models, folder / "overlap", replace(work, overlap=True))
    figures = {**strict, "overlap_step_seconds": overlap["step_seconds"]}
    longer = max(overlap["generate_seconds"], overlap["learn_seconds"])
    figures["overlap_over_longer_stage"] = overlap["step_seconds"] / longer
    figures["memcpy_over_sync"] = strict["memcpy_seconds"] / strict["sync_seconds"]
    beside = measure_trl(models, folder / "trl", work, trl)
    if beside is None:
        return figures
    seconds = beside["trl_step_seconds"]
    return {
        **figures,
        **beside,
        "trl_over_strict": seconds / strict["step_seconds"],
        "trl_over_overlap": seconds / overlap["step_seconds"],
    }


def measure_costs(models: Path, folder: Path, work: Work) -> dict[str, Any]:
    """What a step costs more with a vector for every prompt, more objectives, longer prompts, one more engine."""
    asked = {
        "one vector": replace(work, one_vector=True),
        "a vector each": work,
        "3 objectives": replace(work, objectives=3),
        "5 objectives": replace(work, objectives=5),
        "prompts of 4 x": replace(work, prompt_tokens=4 * work.prompt_tokens),
        "2 engines": replace(work, engines=2),
    }
    stages = {}
    for name, each in asked.items():
        found = measure_steps(models, folder / name.replace(" ", "-"), each)
        stages[name] = {stage: found[f"{stage}_seconds"] for stage in STAGES}
    return {"size": work.size, "stages": stages}


def measure_trl(models: Path, folder: Path, work: Work, trl: Path | None) -> dict[str, Any] | None:
    """TRL's version and the median of its steps; None where it is not installed.

    Raises:
        RunFailed: it was found and did not train.
    """
    environment = dict(os.environ)
    if trl is not None:
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(trl.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    elif importlib.util.find_spec("trl") is None:
        return None
    tokens = work.prompt_tokens + W_TOKENS
    prompts = write_prompts(folder / "prompts.jsonl", count=PROMPTS, tokens=tokens, size=work.size)
    asked = {
        "policy": str(make_policy(work.size, models)),
        "judges": [str(judge) for judge in make_judges(work.objectives, models)],
        "prompts": str(prompts),
        "folder": str(folder / "out"),
        "threads": whole_threads(os.cpu_count() or 1),
        "batch": work.prompts,
        "new_tokens": work.answer_tokens,
        "max_length": tokens + work.answer_tokens,
        "steps": work.steps,
    }
    replace_text(folder / "work.json", json.dumps(asked))
    result, log = folder / "result.json", folder / "output.log"
    with log.open("wb") as output:
        command = [sys.executable, "-P", str(TRL), str(folder / "work.json"), str(result)]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode or not result.is_file():
        raise RunFailed(f"TRL ended with {done.returncode}: {' / '.join(last_lines(log, 3))}")
    found = json.loads(result.read_text(encoding="utf-8"))
    return {"trl": found["version"], "trl_step_seconds": statistics.median(found["seconds"][WARM_UP - 1 :])}


def recipe_tree(models: Path, folder: Path, work: Work) -> dict[str, Any]:
    """All defaults but for the sizes; engine and learner have one reserved core each, and no evaluation is long."""
    judges = make_judges(work.objectives, models)
    prompts = {
        name: str(
            write_prompts(folder / f"{name}.jsonl", count=count, tokens=work.prompt_tokens, size=work.size, seed=seed)
        )
        for name, count, seed in (("train", PROMPTS, 0), ("heldout", 2, 1))
    }
    equal = 1 / work.objectives
    text = {"dtype": "float32", "max_length": 512, "template": "{prompt} {response}", "device": "cpu"}
    return {
        "name": "speed",
        "seed": 0,
        "method": work.method,
        "policy": {"model": str(make_policy(work.size, models))},
        "objectives": [
            {"name": name, "scorer": {"type": "huggingface", "model": str(judge), **text}}
            for name, judge in zip(OBJECTIVES, judges, strict=False)
        ],
        "preferences": {
            "fixed": [equal] * work.objectives if work.one_vector else None,
            "conditioning": {"template": TEMPLATE, "weight": "{name} {weight}"},
        },
        "data": prompts,
        "rollout": {
            "engines": work.engines,
            "num_cpus": 1,
            "dtype": "float32",
            "max_model_len": work.prompt_tokens + 2 * W_TOKENS + work.answer_tokens,
            "max_new_tokens": work.answer_tokens,
            "max_num_seqs": 2 * work.prompts,
        },
        "learner": {"num_cpus": 1, "dtype": "float32", "learning_rate": 1e-6},
        "loop": {
            "steps": work.steps,
            "prompts_per_step": work.prompts,
            "max_staleness": int(work.overlap),
            "checkpoint_every": 10 * work.steps,
        },
        "evaluate": {
            "prompts": 2,
            "samples": 2,
            "normalizer_prompts": 8,
            "identification_responses": 4,
            "information_responses": 2,
        },
        "cluster": {"num_cpus": 4 + work.engines, "dashboard": False},
        "telemetry": {"wandb": "disabled"},
    }


def _memcpy_seconds(size: int) -> float:
    import numpy as np

    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    return fastest_s(lambda: np.copyto(target, source))
