"""What the learner needs to go on, in safetensors and JSON: float32 weights and Adam moments of the trained parameters.

Full tensors by parameter name, so any number of ranks and any ZeRO stage continues from them, and nothing is unpickled.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.types import META, LearnerError, LearnerMeta, read_meta, sha256_of
from learner.weights import full_shape

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARD_BYTES = 1 << 30
"""Bound of one file; a larger tensor is a file of its own."""


class TrainedState:
    """The trained parameters of a DeepSpeed engine, each as full float32 tensors, under every ZeRO stage.

    Collective: every rank makes the same calls. `kind` is None for the weights, or one of `MOMENTS`.

    Args:
        engine: what `deepspeed.initialize` returned; its optimizer is torch's AdamW, or DeepSpeed's around one.
        policy: the module in it.
    """

    def __init__(self, engine: Any, policy: nn.Module) -> None:
        self.parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._zero_stage = engine.zero_optimization_stage()
        self._wrapper = engine.optimizer
        self._adam = getattr(self._wrapper, "optimizer", self._wrapper)

    @property
    def adam_steps(self) -> int:
        return max((int(state["step"]) for state in self._adam.state.values() if "step" in state), default=0)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the full tensors."""
        return full_shape(self.parameters[name])

    def get(self, name: str, kind: str | None) -> Tensor:
        """Full float32 tensor; zeros for a moment before the first step."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self.parameters[name]
        if kind is not None and not self._adam.state:
            return torch.zeros(self.shape(name))
        if not self._zero_stage:
            return parameter.detach() if kind is None else self._adam.state[parameter][kind]
        return safe_get_full_fp32_param(parameter) if kind is None else safe_get_full_optimizer_state(parameter, kind)

    @torch.no_grad()
    def set(self, name: str, kind: str | None, value: Tensor) -> None:
        """Also of the low-precision copy that computes. `prepare` comes first."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter = self.parameters[name]
        value = value.to(parameter.device)
        if self._zero_stage == 3:
            self._set_partition(parameter, kind, value)
        elif not self._zero_stage:
            (parameter if kind is None else self._adam.state[parameter][kind]).copy_(value)
        elif kind is None:
            safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def prepare(self, adam_steps: int) -> None:
        """Make the optimizer's state, which otherwise comes with its first step, and set how many it has taken."""
        for master in self._masters():
            state = self._adam.state[master]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
                state |= {kind: torch.zeros_like(master) for kind in MOMENTS}
            state["step"].fill_(adam_steps)
        if self._zero_stage in (1, 2):  # makes the new state reachable through the parameters
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        """The tensors that Adam steps: the parameters, or this rank's flat partitions of their float32 copies."""
        if self._zero_stage == 3:  # which shows them to Adam in a step only
            return list(self._wrapper.fp32_partitioned_groups_flat)
        return [tensor for group in self._adam.param_groups for tensor in group["params"]]

    @staticmethod
    def _set_partition(parameter: Any, kind: str | None, value: Tensor) -> None:
        """ZeRO 3. DeepSpeed's own setter of full tensors fails where the last rank's partition is padded."""
        import deepspeed
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        size = safe_get_local_fp32_param(parameter).numel()
        part = value.flatten()[size * dist.get_rank() :][:size].float()
        part = torch.nn.functional.pad(part, (0, size - part.numel()))
        if kind is not None:
            safe_set_local_optimizer_state(parameter, part, kind)
            return
        safe_set_local_fp32_param(parameter, part)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)


def save_state(path: Path, state: TrainedState, identity: dict[str, Any]) -> None:
    """Write the state into the folder `path`, from rank 0; META comes last.

    Raises:
        LearnerError: the folder cannot be written (a full disk, say).
    """
    is_writer = dist.get_rank() == 0
    digests: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        file = path / f"state-{len(digests):05d}.safetensors"
        try:
            save_file(shard, file)
        except (OSError, SafetensorError) as error:
            raise LearnerError(f"checkpoint {path}: cannot be written: {error}") from error
        digests[file.name] = sha256_of(file)
        shard.clear()

    if is_writer:
        path.mkdir(parents=True, exist_ok=True)
    size = 0
    for name in state.parameters:
        for kind in (None, *MOMENTS):
            tensor = state.get(name, kind)
            if not is_writer:
                continue
            if shard and size + tensor.nbytes > SHARD_BYTES:
                flush()
                size = 0
            shard[_key(name, kind)] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            size += tensor.nbytes
    if is_writer:
        flush()
        meta = LearnerMeta(identity=identity, adam_steps=state.adam_steps, files=digests)
        (path / META).write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")
    dist.barrier()


def load_state(path: Path, state: TrainedState, identity: dict[str, Any]) -> None:
    """Set the state from the folder `path`.

    Raises:
        LearnerError: no checkpoint there, a damaged one, or one of another learner; names what differs.
    """
    meta = read_meta(path)
    for key, expected in identity.items():
        if meta.identity.get(key) != expected:
            raise LearnerError(
                f"checkpoint {path}: {key} must be {expected!r}, it was saved with {meta.identity.get(key)!r}"
            )
    state.prepare(meta.adam_steps)
    wanted = {_key(name, kind): (name, kind) for name in state.parameters for kind in (None, *MOMENTS)}
    for key, tensor in _tensors(path, meta):
        if key not in wanted or tuple(tensor.shape) != state.shape(wanted[key][0]):
            raise LearnerError(f"checkpoint {path}: holds {key!r} of shape {list(tensor.shape)}, the learner does not")
        state.set(*wanted.pop(key), tensor)
    if wanted:
        raise LearnerError(f"checkpoint {path}: lacks {min(wanted)!r}")


def _tensors(path: Path, meta: LearnerMeta) -> Iterator[tuple[str, Tensor]]:
    for name in meta.files:
        try:
            with safe_open(path / name, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                    yield key, tensors.get_tensor(key)
        except SafetensorError as error:
            raise LearnerError(f"checkpoint {path}: file {name!r} cannot be read: {error}") from None


def _key(name: str, kind: str | None) -> str:
    return f"{kind or 'weight'}/{name}"
