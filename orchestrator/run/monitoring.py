"""What an operator watches of a whole run, told by the driver; actors tell their own part (`actors.metrics`)."""

from collections.abc import Mapping
from typing import Any

from actors.metrics import Metrics

STEP_GAUGES = {
    "step": "Last optimizer step",
    "policy_version": "Version of the learner's weights",
    "loss": "Loss of the last step",
    "loss_alignment": "Its preference term, L_YC",
    "loss_identifiability": "Its information term, L_YW",
    "grad_norm": "Norm of the gradient before clipping",
    "learning_rate": "Learning rate",
    "identification_accuracy": "Share of responses that are likelier under w+ than under w-, by log-ratio",
    "logratio_mean": "Mean log-ratio of policy to reference, nats per response",
    "pair_conflict_rate": "Share of pairs on which the objectives disagree",
    "pair_tie_rate": "Share of pairs and objectives that tie",
    "response_length": "Mean tokens of a response",
    "finished_rate": "Share of responses that ended by themselves",
    "staleness_max": "Policy versions between the oldest sample and the update",
    "sync_bytes": "Bytes of the last weight broadcast",
}
"""Keys of metrics.jsonl, each told as mi_epo_<key>."""
OBJECTIVE_GAUGES = {
    "reward_mean": "Mean raw reward of the last batch",
    "reward_std": "Standard deviation of the raw rewards of the last batch",
}
"""The same for <key>/<objective>, tag `objective`."""
STEP_COUNTERS = {
    "prompts": "Prompts answered",
    "prompts_dropped": "Prompts left out because a score was missing",
    "learner_tokens": "Tokens that passed through the learner",
}
EVALUATION_GAUGES = {
    "hypervolume": "Hypervolume of the last evaluation",
    "mip": "Mean inner product of weights and rewards of the last evaluation",
    "crd": "Conditional reward dispersion of the last evaluation",
    "identification_accuracy": "Share of evaluated responses likelier under their own vector than under another",
    "information_nats": "Estimate of the information of a response about its vector, last evaluation",
    "kl_to_start": "Nats per response to the starting policy, last evaluation",
}
"""Keys of evaluations.jsonl, each told as mi_epo_evaluation_<key>."""


class Monitor:
    """The driver's metrics of one run.

    Args:
        run: name of the run directory.
    """

    def __init__(self, run: str) -> None:
        self._metrics = Metrics(run=run)
        for key, text in STEP_GAUGES.items():
            self._metrics.gauge(f"mi_epo_{key}", text)
        for key, text in OBJECTIVE_GAUGES.items():
            self._metrics.gauge(f"mi_epo_{key}", text, "objective")
        for key, text in STEP_COUNTERS.items():
            self._metrics.counter(f"mi_epo_{key}", text)
        for key, text in EVALUATION_GAUGES.items():
            self._metrics.gauge(f"mi_epo_evaluation_{key}", text)
        spearman = "Rank correlation of weight and reward, last evaluation"
        self._metrics.gauge("mi_epo_evaluation_spearman", spearman, "objective")
        self._metrics.gauge("mi_epo_stage_seconds", "Seconds of the last step by stage; they overlap", "stage")
        self._metrics.gauge("mi_epo_problems", "Signs of training going wrong that the last step showed")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A record of metrics.jsonl."""
        for key in STEP_GAUGES:
            self._metrics.set(f"mi_epo_{key}", metrics[key])
        for key in STEP_COUNTERS:
            self._metrics.add(f"mi_epo_{key}", metrics[key])
        for key, value in metrics.items():
            name, _, tag = key.partition("/")
            if name in OBJECTIVE_GAUGES:
                self._metrics.set(f"mi_epo_{name}", value, objective=tag)
            elif name == "seconds":
                self._metrics.set("mi_epo_stage_seconds", value, stage=tag)
        self._metrics.set("mi_epo_problems", len(metrics["problems"]))

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """A record of evaluations.jsonl."""
        for key in EVALUATION_GAUGES:
            self._metrics.set(f"mi_epo_evaluation_{key}", record[key])
        for objective, value in zip(record["objectives"], record["spearman"], strict=True):
            self._metrics.set("mi_epo_evaluation_spearman", value, objective=objective)

    def close(self) -> None:
        self._metrics.close()
