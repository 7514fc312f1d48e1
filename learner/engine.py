"""One DeepSpeed rank of the learner. Works without Ray.

The caller has joined the ranks' process group, or gives RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

Every call is collective: all ranks make it, in the same order. One optimizer step is always the same number of
micro-batches on every rank; where examples are missing, a rank passes a filler of weight zero, so that collectives line
up and the gradient is exactly the mean over the real examples. What is computed of an example is the method's affair.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.backend import choose_device, choose_dtype, deepspeed_config, start_deepspeed
from learner.checkpoint import TrainedState, load_state, save_state
from learner.config import LearnerConfig, learning_rate
from learner.dealing import Share
from learner.examples import Example
from learner.methods import Combines, MethodSection, make_method
from learner.policy import check_settings, load_policy, load_reference, save_policy_folder
from learner.precision import bfloat16_gain, remark
from learner.sequences import Evaluated, SequenceBlock, pack_examples, pack_sequences
from learner.types import PoisonedUpdateError, StepReport
from learner.weights import AdapterSource, BucketSource, WeightSource
from rewards.environment import derive_seed, native_dtype

SMALL_MODEL = 10_000_000
"""Parameters below which a step is not made of large products."""


class LearnerEngine:
    """Policy, frozen reference, optimizer and loss of one rank.

    Args:
        config: the recipe's `learner` section.
        model: Hugging Face folder or hub id of the starting policy, which is also the reference.
        method: the recipe's `method` section.
        total_steps: optimizer steps of the run, for the learning-rate schedule.
        seed: of adapter initialisation and adapter dropout.

    Raises:
        LearnerError: the model cannot be trained here, or a GPU was asked for and there is none.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        model: str,
        method: MethodSection,
        total_steps: int,
        seed: int,
    ) -> None:
        self.config = config
        self.model = model
        self.total_steps = total_steps
        self.method = make_method(method)
        self.seed = seed
        self.device = choose_device(config)
        self.dtype = choose_dtype(config, self.device)
        deepspeed = start_deepspeed(self.device, timeout_s=config.step_timeout_s)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

        torch.manual_seed(seed)
        policy = load_policy(model, config, dtype=self.dtype)
        check_settings(model, dtype=self.dtype)
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

    def remarks(self) -> tuple[str, ...]:
        """What a user should know of how this model computes, a line each."""
        said = [self._precision()]
        if self.config.prefix_sharing != "off" and not self.policy.longest_shared:
            kind = type(self.policy.causal_lm).__name__
            said.append(f"{kind} computes no trees of sequences: every response passes with the whole of its prompt")
        return tuple(filter(None, said))

    def _precision(self) -> str | None:
        """Of the learner's dtype on a processor where the other one might be the better one; rank 0 speaks for all."""
        sizes = self.policy.causal_lm.config
        hidden, wide = (getattr(sizes, name, None) for name in ("hidden_size", "intermediate_size"))
        small = sum(parameter.numel() for parameter in self.policy.parameters()) < SMALL_MODEL
        may_gain = self.dtype == torch.bfloat16 or native_dtype() == "bfloat16"
        if self.rank or self.device.type != "cpu" or small or not may_gain or not hidden or not wide:
            return None
        return remark(self.dtype, bfloat16_gain(self.config.logprob_chunk_tokens, hidden, wide))

    def update(self, share: Share) -> StepReport:
        """One optimizer step on the mean loss over all ranks' examples, of which `share` has this rank's.

        Returns:
            The same report on every rank, over all examples.

        Raises:
            PoisonedUpdateError: a loss or gradient that is not finite. The engine is of no further use: its gradients
                hold what was found, and its weights may.
        """
        step_rate = learning_rate(self.config, step=share.step, total_steps=self.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = step_rate
        coefficients: Tensor | None = None
        references: list[Tensor | None] = [None] * len(share.micro_batches)
        if isinstance(self.method, Combines):
            coefficients, references = self._coefficients(share)
        self._seed_dropout(share.step)
        sums: dict[str, Tensor] = {}
        learner_tokens = 0
        for index, (examples, part) in enumerate(_micro_batches(share)):
            self._engine.set_gradient_accumulation_boundary(index + 1 == len(share.micro_batches))
            at = self._evaluate(examples, self._engine, share, reference=references[index])
            output = self.method.loss(at, coefficients)
            # DeepSpeed averages gradients over the ranks; the loss is a mean over the examples of all of them.
            self._engine.backward(output.loss * (part * self.world_size), scale_wrt_gas=False)
            learner_tokens += at.block.num_tokens if part else 0
            for name, value in output.metrics.items():
                sums[name] = sums.get(name, 0.0) + value * part
        metrics, learner_tokens = self._reduce(sums, learner_tokens)
        if not math.isfinite(metrics["loss"]):
            raise PoisonedUpdateError(
                f"step {share.step}: the loss is {metrics['loss']}; the optimizer step was not taken", share.step
            )
        metrics["grad_norm"] = self._optimizer_step(share.step)
        metrics["learning_rate"] = step_rate
        if getattr(self.method.config, "kl_budget", None) is not None:
            metrics["anchor"] = share.anchor
        if coefficients is not None:
            metrics["coefficient_max"] = float(coefficients.max())
        return StepReport(step=share.step, metrics=metrics, learner_tokens=learner_tokens)

    @torch.no_grad()
    def token_logprobs(
        self,
        prompt_ids: Sequence[Sequence[int]],
        response_ids: Sequence[Sequence[int]],
        *,
        rows: int = 8,
        reference: bool = False,
    ) -> list[list[float]]:
        """Per response token, log pi(token | prompt and tokens before it) under the policy, or under the reference.

        Every rank must pass the same number of sequences (which may differ between ranks), `rows` at a time.
        """
        of_block = self._reference_logprobs if reference else partial(self._logprobs, self._engine)
        return [part_T.tolist() for part_T in self._of_tokens(prompt_ids, response_ids, rows, of_block)]

    @torch.no_grad()
    def top_tokens(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], *, rows: int = 8
    ) -> list[tuple[float, float]]:
        """Per response the means over its tokens of `learner.policy.top_of` under the policy: entropy and mass.

        Collective, as `token_logprobs` is.
        """

        def of_block(block: SequenceBlock) -> Tensor:
            return self._engine(*block.tensors(), top=True)

        parts = self._of_tokens(prompt_ids, response_ids, rows, of_block)
        return [(entropy, mass) for entropy, mass in (part_T2.mean(0).tolist() for part_T2 in parts)]

    def _of_tokens(
        self,
        prompt_ids: Sequence[Sequence[int]],
        response_ids: Sequence[Sequence[int]],
        rows: int,
        of_block: Callable[[SequenceBlock], Tensor],
    ) -> list[Tensor]:
        """Of each response what `of_block` gives of its tokens [T, ...], `rows` sequences at a time."""
        result: list[Tensor] = []
        self.policy.eval()  # adapter dropout off
        for first in range(0, len(prompt_ids), rows):
            responses = response_ids[first : first + rows]
            block = pack_sequences(prompt_ids[first : first + rows], responses, device=self.device)
            result += of_block(block).split([len(response) for response in responses])
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

    def _evaluate(
        self, examples: Sequence[Example], module: Any, share: Share, *, reference: Tensor | None = None
    ) -> Evaluated:
        """`reference`: its log-probabilities, where the same examples have passed before."""
        block = pack_examples(examples, shared=share.shared, device=self.device)
        if not self.method.uses_reference or reference is not None:
            logprob = self._logprobs(module, block)
        elif self._reference is None:
            logprob, reference = module(*block.tensors(), with_reference=True)
        else:
            with torch.no_grad():
                reference = self._reference_logprobs(block)
            logprob = self._logprobs(module, block)
        return Evaluated(examples=examples, block=block, logprob=logprob, reference=reference, anchor=share.anchor)

    def _coefficients(self, share: Share) -> tuple[Tensor, list[Tensor | None]]:
        """[K] by the method, from its objectives' gradients over all ranks' examples; and each micro-batch's reference
        log-probabilities."""
        assert isinstance(self.method, Combines)
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self._seed_dropout(share.step)
        gradients_KD: Tensor | None = None
        weight_K = torch.zeros(len(share.filler.preference), dtype=torch.float64)
        references: list[Tensor | None] = []
        for examples, part in _micro_batches(share):
            # Not through DeepSpeed's engine, which lets no gradient out but by its own `backward`.
            at = self._evaluate(examples, self.policy, share)
            references.append(at.reference)
            losses_K = self.method.objective_losses(at) * part
            rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses_K]
            part_KD = torch.stack([torch.cat([each.flatten().float() for each in row]) for row in rows])
            gradients_KD = part_KD if gradients_KD is None else gradients_KD + part_KD
            if part:
                weight_K += torch.tensor([example.preference for example in examples], dtype=torch.float64).sum(0)
        assert gradients_KD is not None
        weight_K = weight_K.to(self.device) / share.total
        if self.world_size > 1:
            dist.all_reduce(gradients_KD)
            dist.all_reduce(weight_K)
        gram_KK = (gradients_KD @ gradients_KD.T).double()
        if not gram_KK.isfinite().all():
            raise PoisonedUpdateError(
                f"step {share.step}: an objective's gradient is not finite; the optimizer step was not taken",
                share.step,
            )
        return self.method.combine(gram_KK.cpu(), weight_K.cpu()).to(self.device), references

    def _seed_dropout(self, step: int) -> None:
        """Adapter dropout is a function of (seed, step, rank), so a resumed run repeats it."""
        torch.manual_seed(derive_seed(self.seed, step, self.rank))

    @staticmethod
    def _logprobs(module: Any, block: SequenceBlock) -> Tensor:
        return module(*block.tensors())

    def _reference_logprobs(self, block: SequenceBlock) -> Tensor:
        if self._reference is not None:
            return self._logprobs(self._reference, block)
        if self.config.zero_stage == 3:
            # Never without the adapters alone: what was prefetched of them by then would not be given back, and the
            # next to gather them would find nothing.
            return self._engine(*block.tensors(), with_reference=True)[1]
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


def _micro_batches(share: Share) -> Iterator[tuple[Sequence[Example], float]]:
    """Each with its part of the step; a filler's is 0."""
    for real in share.micro_batches:
        yield (real, len(real) / share.total) if real else ([share.filler], 0.0)
