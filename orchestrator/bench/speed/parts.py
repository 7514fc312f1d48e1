"""The measurements of the benchmark: at which sizes, and how long each may take."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.bench.check.machine import describe_machine
from orchestrator.bench.check.rollouts import measure_rollouts
from orchestrator.bench.speed.learners import Update, measure_learners
from orchestrator.bench.speed.steps import Work, measure_beside_trl, measure_costs
from orchestrator.bench.speed.subjects import SMOLLM2, make_policy
from orchestrator.bench.turns import Part

MODELS = "models"
"""Folder of the benchmark's in which policies and judges are made once."""
QUICK = "117k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Example: Settings(quick=False, trl=Path(".cache/trl"))"""

    quick: bool
    """Everything at the smallest size: does it work at all."""
    trl: Path | None = None
    """Folder that TRL was installed into; None: where Python looks by itself."""


UPDATES = {
    "117k": Update(pairs=32, prompt=32, response=32, micro_batch_tokens=4096),
    "17M": Update(pairs=16, prompt=128, response=64, micro_batch_tokens=2048),
    "17M long prompts": Update(pairs=16, prompt=256, response=64, micro_batch_tokens=2048),
    SMOLLM2: Update(pairs=8, prompt=200, response=64, micro_batch_tokens=1024),
}
WORKS = {
    "117k": Work(size="117k", prompts=32, prompt_tokens=16, answer_tokens=32, steps=24),
    "17M": Work(size="17M", prompts=16, prompt_tokens=32, answer_tokens=128, steps=8),
    SMOLLM2: Work(size=SMOLLM2, prompts=8, prompt_tokens=200, answer_tokens=64, steps=6),
}
COSTS = Work(size="17M", prompts=8, prompt_tokens=32, answer_tokens=32, steps=10)


def machine(folder: Path, settings: Settings) -> dict[str, Any]:
    return describe_machine(cpu=True)


def rollout(folder: Path, settings: Settings, *, size: str, prompts: int, response_tokens: int) -> dict[str, Any]:
    size, prompts = (QUICK, 4) if settings.quick else (size, prompts)
    policy = make_policy(size, folder / MODELS)
    return measure_rollouts(size, policy, cpu=True, prompts=prompts, response_tokens=response_tokens, graphs=False)


def learner(folder: Path, settings: Settings, *, name: str) -> dict[str, Any]:
    name = QUICK if settings.quick else name
    return measure_learners(make_policy(name.split()[0], folder / MODELS), UPDATES[name])


def steps(folder: Path, settings: Settings, *, size: str) -> dict[str, Any]:
    work = replace(WORKS[QUICK], prompts=4, steps=4) if settings.quick else WORKS[size]
    return measure_beside_trl(folder / MODELS, folder / f"steps-{size}", work, settings.trl)


def costs(folder: Path, settings: Settings) -> dict[str, Any]:
    work = replace(COSTS, size=QUICK, prompts=4, steps=4) if settings.quick else COSTS
    return measure_costs(folder / MODELS, folder / "costs", work)


PARTS: tuple[Part[Settings], ...] = (
    Part(name="machine", limit_s=60, work=machine),
    Part(name="rollout-17M", limit_s=300, work=partial(rollout, size="17M", prompts=32, response_tokens=128)),
    Part(
        name="rollout-135M",
        limit_s=600,
        work=partial(rollout, size=SMOLLM2, prompts=16, response_tokens=64),
        rehearsed_by="rollout-17M",
    ),
    Part(name="learner-17M", limit_s=600, work=partial(learner, name="17M")),
    Part(
        name="learner-17M-long-prompts",
        limit_s=600,
        work=partial(learner, name="17M long prompts"),
        rehearsed_by="learner-17M",
    ),
    Part(name="learner-135M", limit_s=1200, work=partial(learner, name=SMOLLM2), rehearsed_by="learner-17M"),
    Part(name="steps-117k", limit_s=600, work=partial(steps, size="117k")),
    Part(name="steps-17M", limit_s=1200, work=partial(steps, size="17M"), rehearsed_by="steps-117k"),
    Part(name="steps-135M", limit_s=3600, work=partial(steps, size=SMOLLM2), rehearsed_by="steps-117k"),
    Part(name="costs", limit_s=1800, work=costs),
)
