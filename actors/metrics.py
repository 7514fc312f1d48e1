"""What actors and driver tell as Ray metrics, which every Ray node serves to Prometheus.

On the endpoint a name gets the prefix `ray_`, and a counter the suffix `_total`. Every metric has the tag `run`: the
run directory's name, which for an actor is the part of its own name before the last slash.
"""

import threading
import time
from typing import Any

REFRESH_S = 1.0
VLLM_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
VLLM_COUNTERS = (
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:num_preemptions",
)
"""vLLM's own names; a colon becomes an underscore. Those that help to size an engine: there are a hundred more."""
VLLM_INTERVAL_S = 2.0
"""Between two looks at vLLM's metrics: Ray sends them on every ten seconds."""


class Metrics:
    """Gauges and counters of this process that share some tags; any thread may tell.

    Gauges are told again every `REFRESH_S` until `close`. Symptom: a gauge that was set once is gone from the endpoint
    after 20 seconds. Cause: Ray sends on what was set since it last sent, and forgets what was not sent twice. Delete
    when Ray keeps the last value.

    Args:
        tags: the shared ones.
    """

    def __init__(self, **tags: str) -> None:
        self._tags = tags
        self._metrics: dict[str, Any] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def gauge(self, name: str, description: str, *keys: str) -> None:
        """Announce a gauge, with the keys of the tags that come with each value."""
        self._announce("Gauge", name, description, keys)

    def counter(self, name: str, description: str, *keys: str) -> None:
        """Announce a counter."""
        self._announce("Counter", name, description, keys)

    def set(self, name: str, value: float | None, **tags: str) -> None:
        """A gauge's value; None leaves the last one."""
        if value is None:
            return
        self._last[name, tuple(tags.items())] = value
        self._metrics[name].set(value, tags=tags)
        if self._thread is None:
            self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)
            self._thread.start()

    def add(self, name: str, amount: float, **tags: str) -> None:
        """To a counter; zero is nothing."""
        if amount:
            self._metrics[name].inc(amount, tags=tags)

    def close(self) -> None:
        """The gauges end here."""
        self._closed.set()

    def _announce(self, kind: str, name: str, description: str, keys: tuple[str, ...]) -> None:
        from ray.util import metrics

        metric = getattr(metrics, kind)(name, description=description, tag_keys=(*self._tags, *keys))
        self._metrics[name] = metric.set_default_tags(self._tags)

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            for (name, tags), value in list(self._last.items()):
                self._metrics[name].set(value, tags=dict(tags))


class EngineMetrics:
    """Of one rollout engine.

    Args:
        engine: its number.
    """

    def __init__(self, engine: int) -> None:
        self._metrics = Metrics(run=run_name(), engine=str(engine))
        self._metrics.gauge("mi_epo_engine_policy_version", "Version of an engine's weights")
        self._metrics.counter("mi_epo_generated_tokens", "Tokens sampled by an engine")
        for name in VLLM_GAUGES:
            self._metrics.gauge(_plain(name), f"vLLM's {name}")
        for name in VLLM_COUNTERS:
            self._metrics.counter(_plain(name), f"vLLM's {name}")
        self._counted = dict.fromkeys(VLLM_COUNTERS, 0.0)
        self._next_look = 0.0

    def holds(self, policy_version: int) -> None:
        self._metrics.set("mi_epo_engine_policy_version", policy_version)

    def sampled(self, tokens: int) -> None:
        self._metrics.add("mi_epo_generated_tokens", tokens)

    def look_at(self, llm: Any) -> None:
        """Pass on what vLLM counts, at most every `VLLM_INTERVAL_S`."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + VLLM_INTERVAL_S
        for metric in llm.get_metrics():
            if metric.name in VLLM_GAUGES:
                self._metrics.set(_plain(metric.name), metric.value)
            elif metric.name in VLLM_COUNTERS:
                self._metrics.add(_plain(metric.name), metric.value - self._counted[metric.name])
                self._counted[metric.name] = metric.value


class JudgeMetrics:
    """Of one reward actor.

    Args:
        objective: its name.
    """

    def __init__(self, objective: str) -> None:
        self._metrics = Metrics(run=run_name(), objective=objective)
        self._metrics.counter("mi_epo_scored_responses", "Responses scored by a reward actor")
        self._metrics.counter("mi_epo_missing_scores", "Responses that got no score")

    def scored(self, responses: int, missing: int) -> None:
        self._metrics.add("mi_epo_scored_responses", responses)
        self._metrics.add("mi_epo_missing_scores", missing)


def run_name() -> str:
    """Of the run that this process's actor belongs to."""
    import ray

    return (ray.get_runtime_context().get_actor_name() or "").rpartition("/")[0]


def _plain(name: str) -> str:
    return name.replace(":", "_")
