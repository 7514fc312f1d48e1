"""Builds the miniature once: prompts, starting policy, reward models. Deterministic by seed, cached, checksummed."""

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import BadInput, RunFailed
from orchestrator.files import write_lines
from orchestrator.progress import TELL
from orchestrator.tasks.apart import run_apart
from orchestrator.tasks.assets import build_once, code_digest
from orchestrator.tasks.miniature import grammar
from orchestrator.tasks.miniature import spec as world
from orchestrator.tasks.miniature.judges import fit_judges, judges_of
from orchestrator.tasks.miniature.spec import MiniatureSpec

if TYPE_CHECKING:
    from orchestrator.tasks.miniature.fits import Responses

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureAssets:
    """Example: `build_miniature(Path("k2")).rewards["helpfulness"]` -> `k2/rewards/helpfulness`."""

    directory: Path
    policy: Path  # Hugging Face folder of the starting policy
    rewards: dict[str, Path]  # objective -> Hugging Face folder of its reward model, in the order asked for
    members: dict[str, tuple[Path, ...]]  # objective -> folders of further ones, for an ensemble
    train_prompts: Path  # JSONL, {"prompt": ...}
    heldout_prompts: Path
    report: dict[str, Any]  # what the build measured

    @classmethod
    def at(
        cls, directory: Path, objectives: Sequence[str], *, members: int, report: dict[str, Any] | None = None
    ) -> "MiniatureAssets":
        rewards = directory / "rewards"
        return cls(
            directory=directory,
            policy=directory / "policy",
            rewards={name: rewards / name for name in objectives},
            members={name: tuple(rewards / f"{name}-{n}" for n in range(1, members + 1)) for name in objectives},
            train_prompts=directory / "prompts" / "train.jsonl",
            heldout_prompts=directory / "prompts" / "heldout.jsonl",
            report=report or {},
        )


def build_miniature(
    directory: Path,
    *,
    objectives: Sequence[str] = ("helpfulness", "harmlessness"),
    seed: int = 0,
    progress: Progress = TELL,
    spec: MiniatureSpec = MiniatureSpec(),  # noqa: B008  # immutable
) -> MiniatureAssets:
    """Returns the miniature in `directory`, building it when it is absent, damaged or made from other settings.

    Building takes one CPU thread about a minute and a half. The folder appears complete or not at all.

    Raises:
        BadInput: unknown objectives, or a directory that cannot be written or holds something else.
        RunFailed: the fitted policy cannot read its preference vector, which no later stage could repair.
    """
    directory = Path(directory)
    objectives = _checked(objectives)
    settings = {
        "spec": asdict(spec),
        "code": code_digest("miniature", "fitting"),
        "objectives": list(objectives),
        "seed": seed,
    }
    manifest = build_once(
        directory,
        settings,
        lambda folder: _build(progress, folder, objectives, seed, spec),
        progress=progress,
    )
    return MiniatureAssets.at(directory, objectives, members=spec.reward.members, report=manifest["report"])


def _checked(objectives: Sequence[str]) -> tuple[str, ...]:
    for name in objectives:
        if name not in world.OBJECTIVES:
            raise BadInput(f"miniature: objectives must be among {', '.join(world.OBJECTIVES)}, got {name!r}")
    if len(set(objectives)) != len(objectives) or len(objectives) < 2:
        raise BadInput(f"miniature: needs two or three different objectives, got {', '.join(objectives) or 'none'}")
    return tuple(objectives)


def _build(say: Progress, folder: Path, objectives: tuple[str, ...], seed: int, spec: MiniatureSpec) -> dict[str, Any]:
    """Fills the folder; returns what its manifest reports."""
    started = time.monotonic()
    parts = MiniatureAssets.at(folder, objectives, members=spec.reward.members)
    built, responses = run_apart(_build_policy, say, parts, seed, spec)
    fitting = time.monotonic()
    judges = judges_of(parts.rewards, parts.members, seed)
    measured = fit_judges(judges, responses, spec.reward, progress=say)
    for name in objectives:
        report = measured[name]
        of = f"{report['heldout_accuracy']:.1%} of {report['heldout_pairs']} held-out pairs ranked right"
        say(f"reward model {name}: {of}")
    ended = time.monotonic()
    say(f"miniature built in {ended - started:.0f} s")
    return {
        "policy": built["policy"],
        "rewards": {name: measured[name] for name in objectives},
        "members": {name: [measured[member.name] for member in parts.members[name]] for name in objectives},
        "seconds": {**built["seconds"], "rewards": round(ended - fitting, 1)},
    }


def _build_policy(
    say: Progress, parts: MiniatureAssets, seed: int, spec: MiniatureSpec
) -> tuple[dict[str, Any], "Responses"]:
    """Prompts and starting policy; returns the report on it, and its answers that the reward models learn from."""
    import torch

    from orchestrator.tasks.fitting.trainer import quiet
    from orchestrator.tasks.miniature.fits import sample_responses_to_compare

    torch.set_num_threads(1)  # with more, sums would depend on how many there are
    clock = [time.monotonic()]
    objectives = tuple(parts.rewards)
    train, heldout = grammar.split_prompts(seed)
    for file, prompts in ((parts.train_prompts, train), (parts.heldout_prompts, heldout)):
        write_lines(file, ({"prompt": prompt} for prompt in prompts))
    with quiet():
        policy = _fit_until_readable(parts.policy, train, objectives, seed, spec, say)
        clock.append(time.monotonic())
        responses = sample_responses_to_compare(
            parts.policy, train, objectives=objectives, seed=seed, settings=spec.reward
        )
    clock.append(time.monotonic())
    laps = [round(end - begin, 1) for begin, end in itertools.pairwise(clock)]
    return {"policy": policy, "seconds": dict(zip(("policy", "responses"), laps, strict=True))}, responses


def _fit_until_readable(
    folder: Path, prompts: Sequence[str], objectives: tuple[str, ...], seed: int, spec: MiniatureSpec, say: Progress
) -> dict[str, Any]:
    """Fits the starting policy, again and for longer while the gate says so."""
    from orchestrator.tasks.miniature.fits import fit_starting_policy, measure_gate

    for extra in range(spec.gate.extra_fits + 1):
        steps = round(spec.policy.steps_for(len(objectives)) * (1 + extra / 2))
        shutil.rmtree(folder, ignore_errors=True)
        fit = fit_starting_policy(
            folder, prompts, objectives=objectives, seed=seed, steps=steps, spec=spec, progress=say
        )
        gate = measure_gate(folder, prompts, objectives=objectives, seed=seed, gate=spec.gate)
        named = dict(zip(objectives, gate.spearman, strict=True))
        readable = ", ".join(f"{name} {value:.2f}" for name, value in named.items())
        say(f"starting policy: loss {fit.loss:.3f}; rank correlation of weight and score: {readable}")
        if gate.passed:
            return {
                "steps": steps,
                "loss": fit.loss,
                "heldout_loss": fit.heldout_loss,
                "spearman": named,
                "ungrammatical_rate": gate.ungrammatical_rate,
            }
        if extra < spec.gate.extra_fits:
            say(f"below {spec.gate.min_spearman} after {steps} steps: fitting again for longer")
    raise RunFailed(
        f"miniature: the starting policy must follow every weight with rank correlation >= {spec.gate.min_spearman}, "
        f"got {readable} after {steps} steps; try another seed"
    )
