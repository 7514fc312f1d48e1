"""Short runs of the product on this machine, and whether they came out as they must."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.errors import RunFailed
from orchestrator.files import last_lines, read_lines, replace_text

ENGINE = "ray::RolloutActor"
LAST_STEPS = 10
HELDOUT = 4
MINIATURE = "deploy/recipes/miniature.yaml"
QUESTIONS = tuple(
    f"{ask} {thing}?"
    for ask in ("How do I choose", "What is the best way to clean", "Why would anybody keep", "Who should I ask about")
    for thing in ("a bicycle", "an old lamp", "a garden", "a loaf of bread", "winter shoes", "a letter of thanks")
)


def run_miniature(folder: Path, *, cpu: bool, steps: int, graphs: bool) -> dict[str, Any]:
    """The demo's first steps with engine and learner on one device; its figures."""
    overrides = _placement(cpu) | {
        "loop.steps": steps,
        "evaluate.prompts": 24,
        "rollout.enforce_eager": not graphs,
        "rollout.start_timeout_s": 300,
    }
    run_training(MINIATURE, overrides, folder)
    return training_figures(folder)


def run_with_a_kill(folder: Path, *, cpu: bool, steps: int) -> dict[str, Any]:
    """The same, with the engine's process killed once; the run must notice and end well."""
    overrides = _placement(cpu) | {"loop.steps": steps, "evaluate.prompts": 4, "evaluate.samples": 2}
    killed: list[float] = []

    def watch(run: psutil.Process) -> None:
        if killed or len(read_lines(folder / "metrics.jsonl")) < steps // 3:
            return
        for child in run.children(recursive=True):
            if ENGINE in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
                killed.append(time.monotonic())
                return

    run_training(MINIATURE, overrides, folder, watch)
    lost = read_lines(folder / "failures.jsonl")
    if not any(record["component"].startswith("rollout-") for record in lost):
        raise RunFailed(f"the engine was {'killed' if killed else 'never found'}, and the run tells of no loss")
    metrics = read_lines(folder / "metrics.jsonl")
    if len(metrics) != steps:
        raise RunFailed(f"{len(metrics)} of {steps} steps were done")
    return {"steps": steps, "longest_step_seconds": max(record["seconds/step"] for record in metrics)}


def run_smollm2(folder: Path, model: Path, *, cpu: bool, steps: int, response_tokens: int) -> dict[str, Any]:
    """A model of SmolLM2's size, full fine-tuning, judged by two Python functions."""
    recipe = write_smollm2(folder, model, steps=steps, response_tokens=response_tokens)
    run_training(str(recipe), _placement(cpu), folder / "run")
    return training_figures(folder / "run")


def write_smollm2(folder: Path, model: Path, *, steps: int, response_tokens: int) -> Path:
    """The recipe of that run, with its prompts beside it: the last questions are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, questions in ((train, QUESTIONS[:-HELDOUT]), (heldout, QUESTIONS[-HELDOUT:])):
        replace_text(path, "".join(f'{{"prompt": "{question}"}}\n' for question in questions))
    recipe = folder / "recipe.yaml"
    text = SMOLLM2.format(model=model, train=train, heldout=heldout, tokens=response_tokens, steps=steps)
    replace_text(recipe, text)
    return recipe


SMOLLM2 = """\
name: check
seed: 0
method: mi-epo
policy: {{model: "{model}"}}
objectives:
  - {{name: detail, scorer: {{type: python, function: "rewards.functions:detail"}}}}
  - {{name: brevity, scorer: {{type: python, function: "rewards.functions:brevity"}}}}
preferences: {{conditioning: {{style: chat}}}}
data: {{train: "{train}", heldout: "{heldout}"}}
rollout: {{max_model_len: 512, max_new_tokens: {tokens}, max_num_seqs: 128}}
learner: {{learning_rate: 1.0e-6, micro_batch_tokens: 8192}}
loop: {{steps: {steps}, prompts_per_step: 16, max_staleness: 0, probe_every: 5}}
evaluate: {{prompts: 2, samples: 2, normalizer_prompts: 8, identification_responses: 16, information_responses: 4}}
"""


def training_figures(run: Path) -> dict[str, Any]:
    """Of a finished run: medians over its steps, means over its last ones, and what evaluations said.

    Raises:
        RunFailed: nothing was written, or not as many evaluations as a run makes.
    """
    metrics, evaluations = read_lines(run / "metrics.jsonl"), read_lines(run / "evaluations.jsonl")
    if not metrics or len(evaluations) < 2:
        raise RunFailed(f"{run}: {len(metrics)} steps and {len(evaluations)} evaluations were written, expected more")
    before, after = evaluations[0], evaluations[-1]
    figures: dict[str, Any] = {"steps": len(metrics)}
    for stage in ("step", "generate", "learn", "sync"):
        figures[f"{stage}_seconds"] = statistics.median(record[f"seconds/{stage}"] for record in metrics)
    tokens = sum(record["generated_tokens"] for record in metrics)
    figures |= {
        "tokens_per_second": tokens / sum(record["seconds/step"] for record in metrics),
        "sync_mb": max(record["sync_bytes"] for record in metrics) / 1e6,
        "engine_mismatch": max(_known(record["engine_mismatch"] for record in metrics), default=None),
        "length_before": before["response_length"],
        "mip_before": before["mip"],
        "mip_after": after["mip"],
        "hypervolume_before": before["hypervolume"],
        "kl_before": before["kl_to_start"],
        "kl_after": after["kl_to_start"],
    }
    for name in ("loss", "identification_accuracy", "weighted_reward"):
        figures[name] = statistics.mean(_known(record[name] for record in metrics[-LAST_STEPS:]))
    return figures


def differences(figures: Mapping[str, float | None], expected: Mapping[str, Sequence[float]]) -> list[str]:
    """A line for each figure that is further from its expected value than its tolerance.

    Args:
        expected: name -> (value, tolerance).
    """
    lines = []
    for name, (value, tolerance) in expected.items():
        found = figures.get(name)
        if found is None or not abs(found - value) <= tolerance:
            lines.append(f"{name}: must be {value:g} +- {tolerance:g}, got {found}")
    return lines


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _placement(cpu: bool) -> dict[str, Any]:
    """Engine and learner on one device, judges on CPU; what a bare environment may lack is off."""
    shares = {"rollout.num_gpus": 0.45, "learner.num_gpus": 0.45, "rollout.gpu_memory_utilization": 0.4}
    return {
        "rollout.colocated": True,
        "cluster.dashboard": False,
        "telemetry.wandb": "disabled",
        **({} if cpu else shares),
    }


def run_training(
    recipe: str, overrides: Mapping[str, object], folder: Path, watch: Callable[[psutil.Process], None] | None = None
) -> None:
    """`mi-epo train` as a user would, its output in FOLDER/output.log; `watch` is called every half second."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in overrides.items()]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("wb") as output:
        command = [sys.executable, "-m", "orchestrator", "train", recipe, *asked, "--run-dir", str(folder)]
        run = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "RAY_ADDRESS": ""})
        while run.poll() is None:
            if watch is not None:
                watch(run)
            time.sleep(0.5)
    if run.returncode:
        raise RunFailed(f"train ended with {run.returncode}: {' / '.join(last_lines(log, 3))}")
