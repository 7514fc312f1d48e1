"""Placing actors on the cluster and waiting for them: every wait has a deadline and says what it waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

QUIET_ENV = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
MAX_MESSAGE_CHARS = 400


def one_line(error: BaseException) -> str:
    """The message of an error on one line, short enough for a terminal; the class name when it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 3] + "..."


def reserve(bundles: Sequence[Mapping[str, float]], *, name: str, timeout_s: float) -> Any:
    """A Ray placement group with one bundle per actor, or TimeoutError naming what was asked and what the cluster has.

    All bundles are granted together or not at all, so that a run never holds half of its actors for ever.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    wanted = [{resource: amount for resource, amount in bundle.items() if amount} for bundle in bundles]
    group = placement_group([bundle or {"CPU": 0.001} for bundle in wanted], strategy="PACK", name=name)
    if not group.wait(timeout_s):
        remove_placement_group(group)
        raise TimeoutError(
            f"no room for {len(wanted)} x {_amounts(wanted[0])} within {timeout_s:g} s; the cluster has "
            f"{_amounts(ray.cluster_resources())} in all and {_amounts(ray.available_resources())} free"
        )
    return group


def wait_ready(handles: Sequence[Any], names: Sequence[str], *, timeout_s: float, error: type[Exception]) -> list[Any]:
    """Call ``ready()`` on every actor side by side and return the replies in order.

    Raises:
        error: an actor failed, died, or took longer than ``timeout_s``; the message names it.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    deadline = time.monotonic() + timeout_s
    refs = {
        handle.ready.remote(): (index, name) for index, (handle, name) in enumerate(zip(handles, names, strict=True))
    }
    replies: list[Any] = [None] * len(refs)
    pending = list(refs)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            late = ", ".join(refs[ref][1] for ref in pending)
            raise error(f"{late}: not ready within {timeout_s:g} s")
        index, name = refs[done[0]]
        try:
            replies[index] = ray.get(done[0])
        except RayTaskError as failure:
            raise error(f"{name}: {one_line(failure.cause or failure)}") from None
        except RayActorError as failure:
            raise error(f"{name}: its process died while starting ({one_line(failure)})") from None
    return replies


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items() if amount or name == "CPU")
