"""Whole runs for tests: a recipe that takes seconds, the command as a user gives it, and what two runs must share."""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.failures import FILE_NAME
from rewards.functions import brevity
from tests.tiny_models import make_tiny_classifier, make_tiny_policy

REPOSITORY = Path(__file__).parent.parent


def tiny_recipe(folder, *, prompt_words=3, second="rewards.functions:brevity"):
    """Four steps on a random policy: a neural reward model against a function of the responses."""
    make_tiny_policy(folder / "policy", vocab=100)
    make_tiny_classifier(folder / "reward", vocab=100)
    for name, count in (("train", 24), ("heldout", 4)):
        rows = [json.dumps({"prompt": " ".join(f"t{i + 20 + j}" for j in range(prompt_words))}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    tree = {
        "name": "tiny",
        "policy": {"model": str(folder / "policy")},
        "objectives": [
            {"name": "a", "scorer": {"type": "huggingface", "model": str(folder / "reward")}},
            {"name": "b", "scorer": {"type": "python", "function": second}},
        ],
        "data": {"train": str(folder / "train.jsonl"), "heldout": str(folder / "heldout.jsonl")},
        "rollout": {"num_cpus": 0.3, "max_model_len": 45 + prompt_words, "max_new_tokens": 8},
        "method": {"type": "mi-epo", "beta_c": 0.3, "beta_w": 0.03},
        "learner": {"num_cpus": 0.3, "micro_batch_tokens": 256, "learning_rate": 1e-2},
        "loop": {"steps": 4, "prompts_per_step": 8},
        "evaluate": {"prompts": 4, "samples": 2, "normalizer_prompts": 16, "identification_responses": 16},
        "cluster": {"num_cpus": 1, "dashboard": False, "object_store_bytes": 200 << 20},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def spotty_brevity(prompts, responses):
    """Brevity that has nothing to say about one prompt in eight."""
    silent = [zlib.crc32(prompt.encode()) % 8 == 0 for prompt in prompts]
    return [None if skip else score for skip, score in zip(silent, brevity(prompts, responses), strict=True)]


def command(*arguments):
    return [sys.executable, "-m", "orchestrator", *map(str, arguments)]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(path: Path) -> list[Any]:
    """The records of a file without what a clock measured."""
    return [{key: value for key, value in record.items() if not key.startswith("seconds")} for record in lines(path)]


def assert_same_results(run: Path, other: Path) -> None:
    """Bit for bit: weights, and every number of metrics, samples and evaluations."""
    for name in ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl"):
        assert timeless(run / name) == timeless(other / name), f"{run / name} differs from {other / name}"
    weights = [(path / "policy" / "model.safetensors").read_bytes() for path in (run, other)]
    assert weights[0] == weights[1], f"the policies of {run} and {other} differ"


def steps_done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def failures(run: Path) -> list[Any]:
    """What the run says it lost."""
    file = run / FILE_NAME
    return lines(file) if file.exists() else []
