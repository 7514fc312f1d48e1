"""The one GPU of a fit. Imports no torch, because what is visible must be settled before torch looks."""

from collections.abc import Mapping, MutableMapping

from orchestrator.errors import BadInput

LAUNCHER = ("WORLD_SIZE", "LOCAL_RANK")
"""Set by torchrun and its like, which give each process its own GPU."""


def leave_one_gpu(environment: MutableMapping[str, str]) -> None:
    """Hide all GPUs but the first visible one, unless a launcher has dealt them out.

    `transformers.Trainer` would split over all that it sees (`nn.DataParallel`), with a whole batch on each.
    """
    if not any(name in environment for name in LAUNCHER):
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def require_one(environment: Mapping[str, str], *, gpus: int) -> None:
    """Raises BadInput where a step would take more rows than `optimization.batch_size`.

    Args:
        gpus: that this process sees and would use.
    """
    processes = environment.get("WORLD_SIZE", "1")
    if processes != "1":
        raise BadInput(f"a fit is one process, got WORLD_SIZE={processes}")
    if gpus > 1:
        raise BadInput(f"a fit uses one GPU, got {gpus} visible ones (CUDA_VISIBLE_DEVICES=0 leaves one)")
