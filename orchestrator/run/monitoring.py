"""What an operator watches of a whole run, told by the driver; actors tell their own part (`actors.metrics`)."""

from collections.abc import Mapping

from actors.metrics import Metrics
from learner.methods import METHODS
from rewards.metrics import EVALUATION_METRICS, STEP_METRICS

RENAMED = {"mi_epo_seconds": "mi_epo_stage_seconds"}
OWN = tuple(metric for method in METHODS.values() for metric in method.metrics)
TOLD = {
    **{f"mi_epo_{metric.family}": metric for metric in (*STEP_METRICS, *OWN) if metric.key != "generated_tokens"},
    **{f"mi_epo_evaluation_{metric.family}": metric for metric in EVALUATION_METRICS},
}
TOLD = {RENAMED.get(name, name): metric for name, metric in TOLD.items()}
"""Ray's name -> what is told under it; a family's figures by its tag. Engines count the generated tokens."""
COUNTERS = ("mi_epo_prompts", "mi_epo_prompts_dropped", "mi_epo_learner_tokens")


class Monitor:
    """The driver's metrics of one run; what `TOLD` does not know is left out.

    Args:
        run: name of the run directory.
    """

    def __init__(self, run: str) -> None:
        self._metrics = Metrics(run=run)
        for name, metric in TOLD.items():
            announce = self._metrics.counter if name in COUNTERS else self._metrics.gauge
            announce(name, metric.definition, *filter(None, [metric.tag]))

    def step(self, figures: Mapping[str, float]) -> None:
        """By the keys of `STEP_METRICS`."""
        self._tell("mi_epo_", figures)

    def evaluation(self, figures: Mapping[str, float]) -> None:
        """By the keys of `EVALUATION_METRICS`."""
        self._tell("mi_epo_evaluation_", figures)

    def close(self) -> None:
        self._metrics.close()

    def _tell(self, prefix: str, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            family, _, member = key.partition("/")
            name = RENAMED.get(prefix + family, prefix + family)
            if name in COUNTERS:
                self._metrics.add(name, value)
            elif name in TOLD:
                self._metrics.set(name, value, **({TOLD[name].tag: member} if member else {}))
