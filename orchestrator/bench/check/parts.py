"""The parts of the check: what each measures, what must hold of it, and how long it may take."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.bench.check.machine import describe_machine
from orchestrator.bench.check.models import SIZES, make_model
from orchestrator.bench.check.rollouts import measure_rollouts
from orchestrator.bench.check.trainings import differences, run_miniature, run_smollm2, run_with_a_kill
from orchestrator.bench.check.updates import measure_updates
from orchestrator.bench.turns import Part
from orchestrator.cards import card_of, installed_gpus
from orchestrator.errors import RunFailed

EXPECTED = Path("deploy/gpu/miniature.json")
MINIATURE_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Example: Settings(cpu=False, smollm2=None)"""

    cpu: bool
    """A rehearsal: the same parts on CPU, with tiny models."""
    smollm2: Path | None = None
    """SmolLM2-135M as a Hugging Face folder; None: a model of its size with random weights."""


def machine(folder: Path, settings: Settings) -> dict[str, Any]:
    return describe_machine(cpu=settings.cpu)


def miniature(folder: Path, settings: Settings, *, graphs: bool = False) -> dict[str, Any]:
    run = folder / ("miniature-graphs" if graphs else "miniature")
    figures = run_miniature(run, cpu=settings.cpu, steps=MINIATURE_STEPS, graphs=graphs)
    wrong = differences(figures, json.loads(EXPECTED.read_text(encoding="utf-8")))
    if wrong:
        raise RunFailed(f"other figures than on CPU: {'; '.join(wrong)}")
    return figures


def miniature_graphs(folder: Path, settings: Settings) -> dict[str, Any]:
    return miniature(folder, settings, graphs=True)


def killed_engine(folder: Path, settings: Settings) -> dict[str, Any]:
    return run_with_a_kill(folder / "killed", cpu=settings.cpu, steps=9)


def smollm2(folder: Path, settings: Settings) -> dict[str, Any]:
    model = _model(folder, settings, "135M")
    figures = run_smollm2(
        folder / "smollm2",
        model.absolute(),
        cpu=settings.cpu,
        steps=3 if settings.cpu else 20,
        response_tokens=8 if settings.cpu else 128,
    )
    if abs(figures["kl_before"]) > 1e-6:
        raise RunFailed(f"the KL to the start must begin at 0, got {figures['kl_before']}")
    return figures | {"weights": "given" if settings.smollm2 else "random"}


def rollout(folder: Path, settings: Settings, *, size: str = "135M") -> dict[str, Any]:
    return measure_rollouts(
        size,
        _model(folder, settings, size),
        cpu=settings.cpu,
        prompts=4 if settings.cpu else 128,
        response_tokens=8 if settings.cpu else 256,
        graphs=not settings.cpu,
    )


def rollout_8b(folder: Path, settings: Settings) -> dict[str, Any]:
    return rollout(folder, settings, size="8B")


def learner_8b(folder: Path, settings: Settings) -> dict[str, Any]:
    return _learner(folder, settings, "8B")


def learner_1b7(folder: Path, settings: Settings) -> dict[str, Any]:
    return _learner(folder, settings, "1.7B")


def learner_135m(folder: Path, settings: Settings) -> dict[str, Any]:
    return _learner(folder, settings, "135M")


def _learner(folder: Path, settings: Settings, size: str) -> dict[str, Any]:
    name = "tiny" if settings.cpu else size
    peak = None if settings.cpu else card_of(installed_gpus(), "H100 80GB").flops
    return measure_updates(name, folder / "models" / name, cpu=settings.cpu, peak_flops=peak)


def _model(folder: Path, settings: Settings, size: str) -> Path:
    if size == "135M" and settings.smollm2 is not None:
        return settings.smollm2
    name = "tiny" if settings.cpu else size
    return make_model(SIZES[name], folder / "models" / name, device="cpu" if settings.cpu else "cuda")


PARTS = (
    Part(name="machine", limit_s=60, work=machine),
    Part(name="miniature", limit_s=120, work=miniature),
    Part(name="smollm2", limit_s=120, work=smollm2),
    Part(name="rollout", limit_s=100, work=rollout),
    Part(name="learner-8b", limit_s=150, work=learner_8b),
    Part(name="miniature-graphs", limit_s=120, work=miniature_graphs, rehearsed_by="miniature"),
    Part(name="killed-engine", limit_s=100, work=killed_engine),
    Part(name="learner-1.7b", limit_s=80, work=learner_1b7, rehearsed_by="learner-8b"),
    Part(name="learner-135m", limit_s=60, work=learner_135m, rehearsed_by="learner-8b"),
    Part(name="rollout-8b", limit_s=150, work=rollout_8b, rehearsed_by="rollout"),
)
"""What matters most comes first: all of them together have less time than their limits add up to."""
