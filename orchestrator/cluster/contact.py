"""First contact with the head of a Ray cluster: does one answer, does it take this process's token, is its Ray ours?

Symptom without it: `ray.init` asks a head that refuses it for twenty seconds and then names no reason; at a port of
something else it goes on for minutes. Cause: it takes every failure for a head that is still starting. Delete when
ray.init says at once why it was refused.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping

ANSWER_S = 10.0
"""Longest wait for the head's answer once something listens; a head under load takes a second or two."""


def check_head(address: str, timeout_s: float) -> None:
    """Raises ConnectionError with the reason in one line.

    Addresses that only `ray.init` can resolve ("auto", for which it also finds the token; "ray://...") pass.

    Args:
        timeout_s: longest wait for something to listen there.
    """
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    _wait_for_listener(host.strip("[]"), int(port), timeout_s)
    import ray

    different = other_ray(_told_by_head(address), ray.__version__)
    if different:
        raise ConnectionError(different)


def other_ray(told: Mapping[str, str], ray_version: str) -> str | None:
    """What is wrong when the head runs another Ray than this process; a head that tells no version is not refused.

    Python is left to `ray.init`, which compares it by a rule of its own.

    Example: other_ray({"ray_version": "2.59.0"}, "2.60.0")
    """
    theirs = told.get("ray_version", ray_version)
    if theirs == ray_version:
        return None
    return f"its head runs Ray {theirs}, this process Ray {ray_version}; a cluster has one version everywhere"


def refusal(code: str, auth_mode: str | None) -> str:
    """What is wrong when a call to the head fails with this gRPC code."""
    if code == "UNAUTHENTICATED":
        return (
            "its head wants a token, and this process has none or another; set RAY_AUTH_MODE=token (it is "
            f"{auth_mode or 'not set'}) and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the head"
        )
    return (
        f"what listens there does not answer as the head of a Ray cluster does ({code}); the port is the one given to "
        "`ray start --head --port` (6379 unless told otherwise), not the dashboard's"
    )


def _wait_for_listener(host: str, port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())):
                return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline - 1:
                raise ConnectionError(f"nothing answers there: {getattr(error, 'strerror', None) or error}") from None
        time.sleep(1)


def _told_by_head(address: str) -> dict[str, str]:
    """The versions that the head wrote down when it started, read as Ray's own processes read them."""
    import grpc
    import ray
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest  # type: ignore[attr-defined] # made when imported
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    asked = InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    with contextlib.closing(create_gcs_channel(address)) as channel:
        try:
            told = InternalKVGcsServiceStub(channel).InternalKVGet(asked, timeout=ANSWER_S, wait_for_ready=True)
        except ray.exceptions.AuthenticationError:  # there is no token to send
            code = "UNAUTHENTICATED"
        except grpc.RpcError as error:
            code = error.code().name
        else:
            return json.loads(told.value or b"{}")
    raise ConnectionError(refusal(code, os.environ.get("RAY_AUTH_MODE")))
