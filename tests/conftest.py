"""Shared by all tests: the environment of the workers, one Ray cluster, and the CUDA gate."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from learner_engines import MakeEngine

# Set before anything imports ray, torch or vllm: Ray's workers and every child process inherit them.
os.environ.update(
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    WANDB_MODE="offline",
)

# Workers unpickle functions and classes of the test modules by name, so they look for them where pytest does.
TESTS = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH")]))

LONG_FILES = (
    *("test_end_to_end.py", "test_jobs.py", "test_chaos.py", "test_two_nodes.py", "test_smoke.py", "test_fleet.py"),
    *("test_learner_engine.py", "test_learner_group.py", "test_weight_broadcast.py", "test_adapter_broadcast.py"),
    *("test_cluster.py", "test_crew.py", "test_rollout_actor.py", "test_refusals.py"),
    *("test_learner_backend.py", "test_smollm2_run.py"),
)
"""The longest one first."""
LOGICAL_CPUS, LOGICAL_GPUS = 8, 1  # counts that Ray schedules by; the machine may have fewer, or none
OBJECT_STORE_BYTES = 200 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny policy."""
    from tiny_models import make_tiny_policy

    return str(make_tiny_policy(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def make_engine(model: str) -> "Iterator[MakeEngine]":
    """Learner engines of it in this process."""
    from learner_engines import group_of_one, new_engine

    with group_of_one():
        yield partial(new_engine, model)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One cluster for every test marked `ray`: starting one takes five seconds."""
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=LOGICAL_CPUS,
        num_gpus=LOGICAL_GPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that two processes that share the files end at about the same time; the gate of `gpu`."""
    items.sort(key=lambda item: LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES))
    skip_without_cuda(items)


def skip_without_cuda(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where CUDA is absent; torch is imported only when such a test was collected."""
    gated = [item for item in items if item.get_closest_marker("gpu")]
    if not gated:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gated:
            item.add_marker(pytest.mark.skip(reason="needs CUDA; torch.cuda.is_available() is False here"))
