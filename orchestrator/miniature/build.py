"""Builds the miniature once: prompts, starting policy, reward models, manifest. Deterministic by seed, cached, atomic."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, RunFailed
from orchestrator.miniature import assets, grammar
from orchestrator.miniature import spec as world
from orchestrator.miniature.assets import MiniatureAssets
from orchestrator.miniature.spec import MiniatureSpec

Progress = Callable[[str], None]


def build_miniature(
    directory: Path,
    *,
    objectives: Sequence[str] = ("helpfulness", "harmlessness"),
    seed: int = 0,
    progress: Progress | None = None,
    spec: MiniatureSpec = MiniatureSpec(),  # noqa: B008  # immutable
) -> MiniatureAssets:
    """Returns the miniature in `directory`, building it when it is not there, damaged or of another version.

    The build happens in a folder beside `directory` and is renamed into place, so a reader sees all of it or nothing; a
    second builder waits for the first and finds its work. One CPU thread, two networks' worth of minutes at most.

    Raises:
        BadInput: unknown objectives, or a directory that holds something else (also a miniature of another seed).
        RunFailed: the fitted policy cannot read its preference vector, which no later stage could repair.
    """
    directory = Path(directory)
    objectives = _checked(objectives)
    say = progress or (lambda line: None)
    if (found := _find(directory, objectives, seed, spec, say)) is not None:
        return found
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        if (found := _find(directory, objectives, seed, spec, say)) is not None:
            return found
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            _build(scratch / "new", objectives, seed, spec, say)
            if directory.exists():
                os.rename(directory, scratch / "old")
            os.rename(scratch / "new", directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    found = _find(directory, objectives, seed, spec, say)
    assert found is not None
    return found


def _checked(objectives: Sequence[str]) -> tuple[str, ...]:
    for name in objectives:
        if name not in world.OBJECTIVES:
            raise BadInput(f"miniature: objectives must be among {', '.join(world.OBJECTIVES)}, got {name!r}")
    if len(set(objectives)) != len(objectives) or len(objectives) < 2:
        raise BadInput(f"miniature: needs two or three different objectives, got {', '.join(objectives) or 'none'}")
    return tuple(objectives)


def _find(
    directory: Path, objectives: tuple[str, ...], seed: int, spec: MiniatureSpec, say: Progress
) -> MiniatureAssets | None:
    """The finished miniature in `directory`; None when it has to be built (again)."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    manifest = assets.read_manifest(directory)
    if manifest is None or "miniature" not in manifest:
        raise BadInput(f"{directory}: is not empty and holds no miniature (no readable {assets.MANIFEST}); choose another folder")
    if (tuple(manifest["objectives"]), manifest["seed"]) != (objectives, seed):
        raise BadInput(
            f"{directory}: holds the miniature of seed {manifest['seed']} with {', '.join(manifest['objectives'])}, "
            f"asked for seed {seed} with {', '.join(objectives)}; choose another folder"
        )
    if manifest["miniature"] != spec.fingerprint():
        say(f"{directory}: was built from another version of the miniature, building it again")
        return None
    if damaged := assets.damaged_files(directory, manifest):
        say(f"{directory}: {damaged[0]} is missing or damaged, building again")
        return None
    return MiniatureAssets.at(directory, manifest)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One builder at a time; the lock goes when its process does."""
    with open(directory.parent / f".{directory.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path, objectives: tuple[str, ...], seed: int, spec: MiniatureSpec, say: Progress) -> None:
    import torch

    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads would depend on how many there are
    try:
        facts = _build_parts(MiniatureAssets.at(target, {"objectives": objectives}), objectives, seed, spec, say)
    finally:
        torch.set_num_threads(threads)
    seconds = {**facts.pop("seconds"), "total": time.monotonic() - started}
    assets.write_manifest(
        target,
        {
            "miniature": spec.fingerprint(),
            "seed": seed,
            "objectives": list(objectives),
            **facts,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        },
    )
    say(f"miniature built in {seconds['total']:.0f} s")


def _build_parts(
    parts: MiniatureAssets, objectives: tuple[str, ...], seed: int, spec: MiniatureSpec, say: Progress
) -> dict[str, Any]:
    """Everything but the manifest; returns what the manifest says about it."""
    from orchestrator.miniature.reward import fit_reward_model, sample_pairs

    clock = _Clock()
    train, heldout = grammar.split_prompts(seed)
    assets.write_prompts(parts.train_prompts, train)
    assets.write_prompts(parts.heldout_prompts, heldout)
    policy, gate = _fit_until_readable(parts.policy, train, objectives, seed, spec, say)
    clock.lap("policy")
    say(f"sampling {spec.reward.num_pairs} pairs for the reward models")
    pairs = sample_pairs(parts.policy, train, objectives=objectives, seed=seed, count=spec.reward.num_pairs)
    clock.lap("pairs")
    rewards = {}
    for index, name in enumerate(objectives):
        report = fit_reward_model(
            parts.rewards[name], pairs, name, seed=seed + index, settings=spec.reward, progress=say
        )
        say(f"reward model {name}: {report.heldout_accuracy:.1%} of {report.heldout_rows} held-out pairs ranked right")
        rewards[name] = {"heldout_accuracy": report.heldout_accuracy, "pairs": report.rows, "loss": report.loss}
    clock.lap("rewards")
    return {"policy": policy, "gate": gate, "rewards": rewards, "seconds": clock.seconds}


def _fit_until_readable(
    directory: Path, prompts: Sequence[str], objectives: tuple[str, ...], seed: int, spec: MiniatureSpec, say: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fits the starting policy, for longer if the gate says so; returns what the manifest says about fit and gate."""
    from orchestrator.miniature.policy import fit_starting_policy, measure_gate

    for extra in range(spec.gate.extra_fits + 1):
        steps = round(spec.policy.steps_for(len(objectives)) * (1 + extra / 2))
        shutil.rmtree(directory, ignore_errors=True)
        report = fit_starting_policy(
            directory, prompts, objectives=objectives, seed=seed, steps=steps, spec=spec, progress=say
        )
        gate = measure_gate(directory, prompts, objectives=objectives, seed=seed, gate=spec.gate)
        readable = ", ".join(f"{name} {value:.2f}" for name, value in zip(objectives, gate.spearman, strict=True))
        say(f"starting policy: loss {report.loss:.3f}; rank correlation of weight and score: {readable}")
        if gate.passed:
            fit = {"steps": steps, "loss": report.loss, "heldout_loss": report.heldout_loss}
            return fit, {
                "spearman": dict(zip(objectives, gate.spearman, strict=True)),
                "ungrammatical_rate": gate.ungrammatical_rate,
            }
        if extra < spec.gate.extra_fits:
            say(f"that is below {spec.gate.min_spearman} after {steps} steps: fitting again for longer")
    raise RunFailed(
        f"miniature: the starting policy must follow every weight with rank correlation >= {spec.gate.min_spearman}, "
        f"got {readable} after {steps} steps; try another seed"
    )


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self._last
        self._last = now
