"""What every figure of a run is called and means: console, files, wandb, Ray's metrics, pages and docs read it here.

A key that ends in `/<...>` stands for a family: one figure for each objective, stage or metric. A method with figures
of its own names them in its `metrics` (`learner.methods`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Example: Metric(key="clipped_share", better="lower", percent=True, definition="Share of tokens whose ...")"""

    key: str
    definition: str  # one sentence
    label: str = ""  # empty: the key's words
    short: str = ""  # the label where a line has no room
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    digits: int = 3  # shown behind the point
    percent: bool = False  # a share in [0, 1], shown in percent
    relative: bool = False  # its change is told in percent

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.key.replace("_", " "))

    @property
    def family(self) -> str:
        """The key without the `/<...>` of a family."""
        return self.key.partition("/<")[0]

    @property
    def tag(self) -> str:
        """What a family has a figure for each of: `objective`, `stage`, `metric`; empty for a single figure."""
        return self.key.partition("/<")[2].removesuffix(">")

    @property
    def name(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def heading(self) -> str:
        """Name and the better direction."""
        return self.name + {"higher": " ↑", "lower": " ↓", "": ""}[self.better]

    def of(self, record: Mapping[str, Any]) -> float | None:
        """Its value in an evaluation; of a family the mean over the objectives."""
        found: Any = record
        for part in self.family.split("/"):
            found = (found or {}).get(part)
        if not isinstance(found, Sequence):
            return found
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known else None

    def show(self, value: float | None, sign: Literal["", "+"] = "") -> str:
        """`0.897` or, of a share, `89.7%`; a dash for what is missing or not finite."""
        if value is None or not math.isfinite(value):
            return "-"
        return f"{100 * value:{sign}.1f}%" if self.percent else f"{value:{sign}.{self.digits}f}"

    def change(self, before: float | None, after: float | None) -> str:
        """`+0.636`, or `+34%`, or of a share `+1.5 pts`; empty where it cannot be said."""
        if before is None or after is None or (self.relative and not before):
            return ""
        if self.relative:
            return f"{100 * (after - before) / abs(before):+.0f}%"
        return self.show(after - before, "+").replace("%", " pts")


# fmt: off
STEP_METRICS = (
    Metric(key="step", digits=0, definition="Number of the optimizer step, from 0."),
    Metric(key="policy_version", digits=0, definition="Version of the policy's weights once the step was done."),
    Metric(key="loss", unit="nats", better="lower", digits=4, definition="What the update lowered, mean over prompts."),
    Metric(key="loss_alignment", label="alignment loss", unit="nats", better="lower", digits=4,
        definition="L_YC: mean over prompts of -a1 log sigmoid(beta_c d) - a2 log sigmoid(-beta_c d), d the log-ratio "
            "of y1 minus that of y2 under w+, a1 and a2 the weight of the objectives that prefer y1 and y2."),
    Metric(key="loss_identifiability", label="identifiability loss", unit="nats", better="lower", digits=4,
        definition="L_YW: mean over responses of -log sigmoid(beta_w times the log-ratio under w+, held fixed, minus "
            "beta_w times that under w-); of several w-, the log of the sum of their exponentials."),
    Metric(key="grad_norm", label="gradient norm", definition="Euclidean norm of the gradient, before it is clipped."),
    Metric(key="learning_rate", digits=6, definition="Learning rate of the step, as the schedule has it."),
    Metric(key="identification_accuracy", short="id.acc", better="higher", digits=2,
        definition="Share of responses and w- with a higher log-ratio under w+ than under w-; chance is 0.5."),
    Metric(key="logratio_mean", label="log-ratio to the reference", unit="nats",
        definition="Mean over responses of log pi - log pi_ref under w+, summed over a response's tokens."),
    Metric(key="logratio_negative_mean", label="log-ratio to the reference under w-", unit="nats",
        definition="Mean over the same responses, and over w-, of log pi - log pi_ref under w-."),
    Metric(key="margin_mean", label="margin", unit="nats", better="higher",
        definition="Mean over pairs of beta_c d, its sign such that it is above 0 where the winner is likelier."),
    Metric(key="weighted_reward", short="w.reward", better="higher",
        definition="Mean over fully scored responses of w+ . normalised scores (RIC online: asked levels as w+)."),
    Metric(key="pair_conflict_rate", label="pairs in conflict", percent=True,
        definition="Share of prompts on which two objectives prefer different responses."),
    Metric(key="pair_tie_rate", label="pairs all tied", percent=True,
        definition="Share of prompts on which every objective ties: they have no gradient in the alignment loss."),
    Metric(key="response_length", unit="tokens", digits=1, definition="Mean number of sampled tokens in a response."),
    Metric(key="finished_rate", label="finished responses", percent=True,
        definition="Share of responses that ended by themselves, not at the length limit."),
    Metric(key="staleness_max", label="staleness", unit="versions", better="lower", digits=0,
        definition="Version of the weights that were updated minus that of the batch's oldest response."),
    Metric(key="prompts", digits=0, definition="Prompts answered in the step."),
    Metric(key="prompts_dropped", better="lower", digits=0, definition="Prompts left out because a score was missing."),
    Metric(key="generated_tokens", digits=0, definition="Tokens sampled for the step."),
    Metric(
        key="learner_tokens", digits=0,
        definition="Tokens that pass the learner's policy; what a prompt's responses begin with alike counts once.",
    ),
    Metric(key="sync_bytes", digits=0, definition="Size of the weights sent to the engines after the step, or 0."),
    Metric(key="engine_mismatch", label="engine against learner", unit="nats a token", better="lower", digits=5,
        definition="Mean over tokens of the absolute difference between their log pi as an engine sampled them and as "
            "the learner finds it, same weights; after the first update, every loop.probe_every, and the last."),
    Metric(key="top_entropy", label="entropy of the top tokens", unit="nats a token", digits=3,
        definition="Mean over the same tokens of - sum p log p of the ten that the policy finds likeliest there; "
            "what is over-optimised has little left to choose from."),
    Metric(key="top_mass", label="mass of the top tokens", percent=True,
        definition="Mean of the sum of their p; what is over-optimised loses it to tokens that it never chose."),
    Metric(key="reward_mean/<objective>", label="mean reward", definition="Mean of the batch's raw scores."),
    Metric(key="reward_std/<objective>", label="reward spread", definition="Standard deviation of the raw scores."),
    Metric(key="labels", digits=0,
        definition="Comparisons that annotators made for a refresh of the judges before the step, or 0."),
    Metric(key="judge_accuracy/<objective>", label="judge against annotator", percent=True, better="higher",
        definition="Share of these that the judge, before the refresh, ranked as its annotator did."),
    Metric(key="problems", digits=0, definition="Signs of trouble in the step: by name in the file, else how many."),
    Metric(key="seconds/<stage>", label="time", unit="seconds", digits=2,
        definition="Wall time of stages, which overlap: generate from submission to the last response, score from the "
            "first response to the last score, learn, sync, idle_learner waiting for samples, step from end to end."),
)
"""Of a line of metrics.jsonl, in its order; a method's own come on top."""

EVALUATION_METRICS = (
    Metric(key="mip", label="MIP", better="higher",
        definition="Mean inner product: mean over vectors w of w . (mean normalised score under w)."),
    Metric(key="hypervolume", better="higher", digits=2, relative=True,
        definition="Volume that the vectors' mean normalised scores dominate, from the reference point; not "
            "comparable between reference points or normalisers."),
    Metric(key="crd", label="CRD", better="lower", relative=True,
        definition="Conditional reward dispersion: mean over vectors of the determinant of the covariance of "
            "responses' normalised scores; small where w says what will come."),
    Metric(key="steering_gap", better="lower",
        definition="Mean over vectors w of the highest w . (mean score) under any vector minus that under w itself."),
    Metric(key="neighbour_overlap", label="overlap of neighbours", better="lower",
        definition="Mean Bhattacharyya coefficient of normals fitted to the scores under neighbouring vectors."),
    Metric(key="spearman/<objective>", label="Spearman", better="higher", digits=2,
        definition="Rank correlation over the vectors between an objective's weight and its mean score."),
    Metric(key="identification_accuracy", better="higher",
        definition="Share of responses likelier under their own vector than under another; chance is 0.5."),
    Metric(key="information_nats", label="information about w", unit="nats", better="higher",
        definition="InfoNCE estimate of I(Y; W given X): mean over responses of log pi under their own vector minus "
            "the log of the mean of pi over the grid's vectors; at most the log of their number."),
    Metric(key="kl_to_start", label="KL to the start", unit="nats", digits=2,
        definition="Mean over sampled responses of log pi - log pi_start under their w, both by the learner, summed "
            "over tokens; 0 before the first update."),
    Metric(key="start_logprob", label="log-probability under the start", unit="nats/token", better="higher", digits=2,
        definition="Log-probability of a sampled token under the start, by the learner; one that falls far below the "
            "start's own answers', in the evaluation before the first update, is no longer its language."),
    Metric(key="distinct_responses", percent=True,
        definition="Share of different texts among the answers to one prompt under one vector, averaged."),
    Metric(key="response_length", unit="tokens", digits=1, definition="Mean number of sampled tokens in a response."),
    Metric(key="fraction_of_attainable/<metric>", label="share of the attainable", better="higher", percent=True,
        definition="The figure over the best that any policy could reach by the same judge."),
    Metric(key="kendall/<objective>", label="Kendall", better="higher", digits=2,
        definition="Kendall's tau-b over the vectors between an objective's weight and its mean score."),
    Metric(key="sparsity", definition="Mean squared step between neighbours on the front, summed over objectives."),
    Metric(key="igd_plus", label="IGD+", better="lower",
        definition="Mean over the compared methods' joint front of how far the nearest own point falls short of it."),
    Metric(key="missing", label="responses with a missing score", better="lower", digits=0,
        definition="Responses without a finite score on every objective; the figures of scores leave them out."),
    Metric(key="step", digits=0, definition="Optimizer steps done before the evaluation."),
    Metric(key="policy_version", digits=0, definition="Version of the evaluated weights."),
    Metric(key="seconds", label="time", unit="seconds", digits=1, definition="Wall time of the evaluation."),
)
"""Of a line of evaluations.jsonl or a side of summary.json. The audit judge's have a part of their own, `audit/`."""
# fmt: on


def describe(key: str, extra: Iterable[Metric] = (), *, table: Sequence[Metric] = STEP_METRICS) -> Metric:
    """The entry of a key: of the table, of `extra` (a method's own), or made from the key where neither has it.

    Example: describe("audit/spearman/humor", table=EVALUATION_METRICS).label == "audit Spearman, humor"
    """
    known = {metric.family: metric for metric in (*table, *extra)}
    if key in known:
        return known[key]
    family, _, member = key.partition("/")
    if family == "audit":
        metric = describe(member, extra, table=table)
        return replace(metric, key=key, label=f"audit {metric.label}")
    if member and family in known:
        label = describe(member, table=table).label if known[family].tag == "metric" else member
        return replace(known[family], key=key, label=f"{known[family].label}, {label}")
    return Metric(key=key, definition="", percent=key.endswith("_rate"))


def evaluation_figures(record: Mapping[str, Any], objectives: Sequence[str]) -> dict[str, float]:
    """Every number in a line of evaluations.jsonl or a side of summary.json: `mip`, `spearman/humor`, `audit/mip`, ...

    The audit judge's extra statistics come last, under `audit/<name>`.
    """
    audit = record.get("audit") or {}
    found: dict[str, Any] = {}
    for family in (metric.family for metric in EVALUATION_METRICS):
        for prefix, side in (("", record), ("audit/", audit)):
            value = side.get(family)
            if isinstance(value, Sequence):
                value = dict(zip(objectives, value, strict=True))
            members = {f"/{name}": v for name, v in value.items()} if isinstance(value, Mapping) else {"": value}
            found |= {f"{prefix}{family}{member}": number for member, number in members.items()}
    found |= {f"audit/{name}": value for name, value in (audit.get("extra") or {}).items()}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}
