"""One DeepSpeed rank of the learner. Works without Ray.

The caller has joined the ranks' process group, or gives RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

Every method is collective: all ranks call it, in the same order. One optimizer step is always the same number of
micro-batches on every rank; where pairs are missing, a rank runs a stand-in of weight zero, so that collectives line up
and the gradient is exactly the mean over the real pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.backend import choose_device, choose_dtype, deepspeed_config, start_deepspeed
from learner.checkpoint import TrainedState, load_state, save_state
from learner.config import LearnerConfig
from learner.losses import LossOutput, mi_epo_loss, supervised_loss
from learner.methods import METHODS
from learner.policy import load_policy, load_reference, save_policy_folder
from learner.schedule import learning_rate
from learner.sequences import SequenceBlock, pack_labelled, pack_pairs, pack_sequences
from learner.types import (
    LabelledBatch,
    LabelledPair,
    LearnerError,
    PairBatch,
    PoisonedUpdateError,
    PreferencePair,
    StepReport,
)
from learner.weights import AdapterSource, BucketSource, WeightSource

STAND_IN = PreferencePair(
    prompt_ids_pos=(0,), prompt_ids_neg=((0,),), response_ids=((0,), (0,)), weight_y1=0.0, weight_y2=0.0
)
"""What a rank without pairs computes on, times zero."""
STAND_IN_LABELLED = LabelledPair(prompt_ids=((0,), (0,)), response_ids=((0,), (0,)))
"""The same for a supervised method."""


class LearnerEngine:
    """Policy, frozen reference, optimizer and loss of one rank.

    Args:
        config: the recipe's `learner` section.
        model: Hugging Face folder or hub id of the starting policy, which is also the reference.
        total_steps: optimizer steps of the run, for the learning-rate schedule.
        pairs_per_step: largest batch of one optimizer step, over all ranks.
        seed: of adapter initialisation and adapter dropout.
        method: a name of `learner.methods.METHODS`.

    Raises:
        LearnerError: the model cannot be trained here, or a GPU was asked for and there is none.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        model: str,
        total_steps: int,
        pairs_per_step: int,
        seed: int,
        method: str = "mi-epo",
    ) -> None:
        self.config = config
        self.model = model
        self.total_steps = total_steps
        self.pairs_per_step = pairs_per_step
        self.seed = seed
        self.beta_w = METHODS[method].beta_w(config)
        self.supervised = METHODS[method].supervised
        self.device = choose_device(config)
        self.dtype = choose_dtype(config, self.device)
        deepspeed = start_deepspeed(self.device, timeout_s=config.step_timeout_s)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.micro_batches = math.ceil(pairs_per_step / (self.world_size * config.micro_batch_pairs))

        torch.manual_seed(seed)
        policy = load_policy(model, config, dtype=self.dtype)
        if config.zero_stage < 3:
            policy.to(self.device)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            # DeepSpeed's CPU Adam compiles for minutes and is no faster.
            fused=True,
        )
        # DeepSpeed's plain float32 path clips without telling the norm.
        self._clips_here = config.zero_stage == 0 and self.dtype == torch.float32
        settings = deepspeed_config(
            config,
            dtype=self.dtype,
            micro_batches=self.micro_batches,
            max_grad_norm=0.0 if self._clips_here else config.max_grad_norm,
        )
        self._engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        self.policy = policy
        self._reference = self._start_reference(deepspeed, settings)
        self._weights = WeightSource(policy, bucket_bytes=config.bucket_bytes)
        only_adapters = config.lora is not None and config.broadcast == "auto"
        self.broadcast: BucketSource = (
            AdapterSource(policy, bucket_bytes=config.bucket_bytes) if only_adapters else self._weights
        )
        """What goes to the rollout engines; iterate its buckets on all ranks."""
        self._state = TrainedState(self._engine, policy)

    def update(self, batch: PairBatch | LabelledBatch, *, total_prompts: float) -> StepReport:
        """One optimizer step on the mean loss over all ranks' prompts.

        Args:
            batch: this rank's share of the pairs; may be empty.
            total_prompts: sum of `prompt_share` over the pairs of all ranks.

        Returns:
            The same report on every rank, over all pairs.

        Raises:
            LearnerError: more pairs than planned.
            PoisonedUpdateError: a loss or gradient that is not finite. The engine is of no further use: its gradients
                hold what was found, and its weights may.
        """
        self._check_batch(batch, total_prompts)
        step_rate = learning_rate(self.config, step=batch.step, total_steps=self.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = step_rate
        # Adapter dropout: a function of (seed, step, rank), so a resumed run repeats it.
        torch.manual_seed(_hash_seed(self.seed, batch.step, self.rank))
        sums: dict[str, Tensor] = {}
        learner_tokens = 0
        for index, (pairs, is_real) in enumerate(self._micro_batches(batch)):
            output, block = self._loss(pairs)
            share = sum(pair.prompt_share for pair in pairs) / total_prompts if is_real else 0.0
            # DeepSpeed averages gradients over the ranks; the loss is a mean over the prompts of all of them.
            loss = output.loss * (share * self.world_size)
            self._engine.backward(loss, scale_wrt_gas=False)
            learner_tokens += block.num_tokens if is_real else 0
            for name, value in output.metrics.items():
                sums[name] = sums.get(name, 0.0) + value * share
            if index + 1 < self.micro_batches:
                self._engine.step()
        metrics, learner_tokens = self._reduce(sums, learner_tokens)
        if not math.isfinite(metrics["loss"]):
            raise PoisonedUpdateError(
                f"step {batch.step}: the loss is {metrics['loss']}; the optimizer step was not taken", batch.step
            )
        metrics["grad_norm"] = self._optimizer_step(batch.step)
        metrics["learning_rate"] = step_rate
        return StepReport(step=batch.step, metrics=metrics, learner_tokens=learner_tokens)

    @torch.no_grad()
    def token_logprobs(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], *, reference: bool = False
    ) -> list[list[float]]:
        """Per response token, log pi(token | prompt and tokens before it) under the policy, or under the reference.

        Every rank must pass the same number of sequences (which may differ between ranks).
        """
        rows = self.config.micro_batch_pairs * (4 if self.beta_w else 2)
        result: list[list[float]] = []
        self.policy.eval()  # adapter dropout off
        for first in range(0, len(prompt_ids), rows):
            responses = response_ids[first : first + rows]
            block = pack_sequences(prompt_ids[first : first + rows], responses, device=self.device)
            logprobs_M = self._reference_logprobs(block) if reference else self._logprobs(self._engine, block)
            parts = logprobs_M.split([len(response) for response in responses])
            result += [part.tolist() for part in parts]
        self.policy.train()
        return result

    def weights(self) -> WeightSource:
        """The policy's full, merged weights under their Hugging Face names; iterate its buckets on all ranks."""
        return self._weights

    def save_policy(self, path: str | Path) -> None:
        """Write the policy as a Hugging Face folder (adapter merged, tokenizer included), atomically, from rank 0."""
        full: dict[str, Tensor] = {}
        for bucket in self._weights.buckets():
            if self.rank == 0:
                full |= {spec.name: tensor.to("cpu", copy=True) for spec, tensor in bucket}
        if self.rank == 0:
            save_policy_folder(Path(path), model=self.model, weights=full, dtype=self.dtype)
        dist.barrier()

    def save_checkpoint(self, path: str | Path) -> None:
        """Write weights, optimizer state and what they belong to into the folder `path`; see `learner.checkpoint`."""
        save_state(Path(path), self._state, self._identity())

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from `save_checkpoint`: bit for bit with as many ranks, under any ZeRO stage; else up to rounding.

        Raises:
            LearnerError: no checkpoint there, a damaged one, or one of another model; names what differs.
        """
        load_state(Path(path), self._state, self._identity())

    def close(self) -> None:
        """Leave the process group; the engine is unusable afterwards."""
        self._engine.destroy()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _micro_batches(self, batch: PairBatch | LabelledBatch) -> Iterator[tuple[Sequence[Any], bool]]:
        """Exactly `micro_batches` lists of pairs; (stand-in, False) where this rank has no pairs left."""
        size = self.config.micro_batch_pairs
        # Pairs of similar length share a micro-batch: less padding.
        pairs = sorted(batch.pairs, key=_longest_sequence) if self.micro_batches > 1 else batch.pairs
        for index in range(self.micro_batches):
            real = pairs[index * size : (index + 1) * size]
            stand_in = STAND_IN_LABELLED if self.supervised else STAND_IN
            yield (real, True) if real else ([stand_in], False)

    def _loss(self, pairs: Sequence[Any]) -> tuple[LossOutput, SequenceBlock]:
        return self._supervised_loss(pairs) if self.supervised else self._preference_loss(pairs)

    def _supervised_loss(self, pairs: Sequence[LabelledPair]) -> tuple[LossOutput, SequenceBlock]:
        block = pack_labelled(pairs, device=self.device)
        logprobs_M = self._logprobs(self._engine, block)
        lengths_S = block.sum_by_sequence(torch.ones_like(logprobs_M))
        return supervised_loss(block.sum_by_sequence(logprobs_M).view(-1, 2), lengths_S.view(-1, 2)), block

    def _preference_loss(self, pairs: Sequence[PreferencePair]) -> tuple[LossOutput, SequenceBlock]:
        block = pack_pairs(pairs, with_negative=self.beta_w > 0, device=self.device)
        with torch.no_grad():
            reference_M = self._reference_logprobs(block)
        policy_M = self._logprobs(self._engine, block)
        logratio_S = block.sum_by_sequence(policy_M - reference_M)
        if self.config.length_normalized:
            logratio_S = logratio_S / block.sum_by_sequence(torch.ones_like(reference_M))
        logratio = logratio_S.view(-1, len(pairs), 2)
        columns = [(pair.weight_y1, pair.weight_y2, pair.prompt_share) for pair in pairs]
        weight_y1, weight_y2, prompt_share = torch.tensor(columns, device=self.device).unbind(-1)
        output = mi_epo_loss(
            logratio[0],
            logratio[1:] if self.beta_w else None,
            weight_y1,
            weight_y2,
            beta_c=self.config.beta_c,
            beta_w=self.beta_w,
            stop_gradient=self.config.stop_gradient,
            prompt_share=prompt_share,
        )
        return output, block

    @staticmethod
    def _logprobs(module: Any, block: SequenceBlock) -> Tensor:
        return module(block.input_ids, block.positions, block.targets)

    def _reference_logprobs(self, block: SequenceBlock) -> Tensor:
        if self._reference is not None:
            return self._logprobs(self._reference, block)
        with self.policy.model.disable_adapter():  # type: ignore[operator]
            return self._logprobs(self._engine, block)

    def _reduce(self, sums: dict[str, Tensor], learner_tokens: int) -> tuple[dict[str, float], int]:
        """Totals over all ranks, in one small all-reduce. A loss that is not finite anywhere is so everywhere."""
        totals = torch.stack(
            [*(value.double() for value in sums.values()), torch.tensor(learner_tokens).to(self.device)]
        )
        if self.world_size > 1:
            dist.all_reduce(totals)
        values = totals.tolist()
        return dict(zip(sums, values[:-1], strict=True)), int(values[-1])

    def _optimizer_step(self, step: int) -> float:
        if self._clips_here:
            norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm))
            if not math.isfinite(norm):
                raise PoisonedUpdateError(
                    f"step {step}: the gradient norm is {norm}; the optimizer step was not taken", step
                )
            self._engine.step()
            return norm
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise PoisonedUpdateError(f"step {step}: the gradient norm is {norm}; the weights are not sound now", step)
        return norm

    def _start_reference(self, deepspeed: Any, settings: dict[str, Any]) -> Any:
        """None with adapters; else a frozen copy, partitioned over the ranks when the policy is."""
        if self.config.lora is not None:
            return None
        reference = load_reference(self.model, self.config, dtype=self.dtype)
        if self.config.zero_stage < 3:
            return reference.to(self.device)
        engine, *_ = deepspeed.initialize(model=reference, config=settings)
        engine.eval()  # returns None, unlike a module's
        return engine

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the engine that loads it."""
        digest = hashlib.blake2b(digest_size=8)
        for spec in self._weights.specs:
            digest.update(f"{spec.name}|{spec.shape}\n".encode())
        return {
            "architecture": digest.hexdigest(),
            "lora": None if self.config.lora is None else self.config.lora.model_dump(mode="json"),
        }

    def _check_batch(self, batch: PairBatch | LabelledBatch, total_prompts: float) -> None:
        if not 0 < total_prompts <= self.pairs_per_step:
            raise LearnerError(
                f"step {batch.step}: the prompts of a step must number between 1 and pairs_per_step = "
                f"{self.pairs_per_step}, got {total_prompts:g}"
            )
        room = self.micro_batches * self.config.micro_batch_pairs
        if len(batch.pairs) > room:
            raise LearnerError(
                f"step {batch.step}: rank {self.rank} takes at most {self.micro_batches} x "
                f"{self.config.micro_batch_pairs} = {room} pairs, got {len(batch.pairs)}"
            )


def _longest_sequence(pair: PreferencePair | LabelledPair) -> int:
    prompt_ids = max(pair.prompt_ids, key=len) if isinstance(pair, LabelledPair) else pair.prompt_ids_pos
    return len(prompt_ids) + max(map(len, pair.response_ids))


def _hash_seed(*parts: object) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
