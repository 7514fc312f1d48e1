"""An evaluation as rows, for whoever shows tables: data frames, wandb."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def front_rows(record: Mapping[str, Any]) -> list[Row]:
    """Of a line of evaluations.jsonl, a row for each vector: `step`, `w/<objective>`, the mean normalised
    `reward/<objective>`, and `audit/<objective>` where there are second judges."""
    audits = record["audit"]["points"] if record.get("audit") else [()] * len(record["points"])
    names = record["objectives"]
    return [
        {
            "step": record["step"],
            **_named("w", names, weights),
            **_named("reward", names, rewards),
            **(_named("audit", names, audit) if audit else {}),
        }
        for weights, rewards, audit in zip(record["preferences"], record["points"], audits, strict=True)
    ]


def example_rows(record: Mapping[str, Any]) -> list[Row]:
    """Of a line of evaluations.jsonl, a row for each answer that was kept word for word: `step`, `prompt`,
    `w/<objective>`, `response`, and its normalised `reward/<objective>`."""
    names = record["objectives"]
    return [
        {
            "step": record["step"],
            "prompt": example["prompt"],
            **_named("w", names, example["preference"]),
            "response": example["response"],
            **_named("reward", names, example["scores"]),
        }
        for example in record["examples"]
    ]


def _named(part: str, names: Sequence[str], values: Sequence[float]) -> Row:
    return {f"{part}/{name}": value for name, value in zip(names, values, strict=True)}
