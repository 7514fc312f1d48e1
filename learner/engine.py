"""One DeepSpeed rank of the learner. Works without Ray.

The caller has joined the ranks' process group, or gives RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

Every call is collective: all ranks make it, in the same order. One optimizer step is always the same number of
micro-batches on every rank; where examples are missing, a rank passes a filler of weight zero, so that collectives line
up and the gradient is exactly the mean over the real examples. What is computed of an example is the method's affair.
"""

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
from learner.config import LearnerConfig, learning_rate
from learner.examples import Batch, Example, longest_sequence
from learner.methods import Combines, MethodSection, make_method
from learner.policy import check_settings, load_policy, load_reference, save_policy_folder
from learner.sequences import Evaluated, SequenceBlock, pack_examples, pack_sequences
from learner.types import LearnerError, PoisonedUpdateError, StepReport
from learner.weights import AdapterSource, BucketSource, WeightSource
from rewards.environment import derive_seed


class LearnerEngine:
    """Policy, frozen reference, optimizer and loss of one rank.

    Args:
        config: the recipe's `learner` section.
        model: Hugging Face folder or hub id of the starting policy, which is also the reference.
        method: the recipe's `method` section.
        total_steps: optimizer steps of the run, for the learning-rate schedule.
        examples_per_step: largest batch of one optimizer step, over all ranks.
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
        examples_per_step: int,
        seed: int,
    ) -> None:
        self.config = config
        self.model = model
        self.total_steps = total_steps
        self.method = make_method(method)
        self.examples_per_step = examples_per_step
        self.seed = seed
        self.device = choose_device(config)
        self.dtype = choose_dtype(config, self.device)
        deepspeed = start_deepspeed(self.device, timeout_s=config.step_timeout_s)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.micro_batches = math.ceil(examples_per_step / (self.world_size * config.micro_batch_prompts))

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

    def remarks(self) -> list[str]:
        """What a user should know of how this model computes, a line each."""
        if self.config.prefix_sharing == "off" or self.policy.longest_shared:
            return []
        kind = type(self.policy.causal_lm).__name__
        return [f"{kind} computes no trees of sequences: every response passes with the whole of its prompt"]

    def update(self, batch: Batch, *, total: int) -> StepReport:
        """One optimizer step on the mean loss over all ranks' examples.

        Args:
            batch: this rank's share of the examples; may hold none but a filler.
            total: examples of all ranks.

        Returns:
            The same report on every rank, over all examples.

        Raises:
            LearnerError: more examples than planned.
            PoisonedUpdateError: a loss or gradient that is not finite. The engine is of no further use: its gradients
                hold what was found, and its weights may.
        """
        self._check_batch(batch, total)
        step_rate = learning_rate(self.config, step=batch.step, total_steps=self.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = step_rate
        coefficients = self._coefficients(batch, total) if isinstance(self.method, Combines) else None
        self._seed_dropout(batch.step)
        sums: dict[str, Tensor] = {}
        learner_tokens = 0
        for index, (examples, share) in enumerate(self._micro_batches(batch, total)):
            at = self._evaluate(examples, self._engine)
            output = self.method.loss(at, coefficients)
            # DeepSpeed averages gradients over the ranks; the loss is a mean over the examples of all of them.
            self._engine.backward(output.loss * (share * self.world_size), scale_wrt_gas=False)
            learner_tokens += at.block.num_tokens if share else 0
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
        if coefficients is not None:
            metrics["coefficient_max"] = float(coefficients.max())
        return StepReport(step=batch.step, metrics=metrics, learner_tokens=learner_tokens)

    @torch.no_grad()
    def token_logprobs(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], *, reference: bool = False
    ) -> list[list[float]]:
        """Per response token, log pi(token | prompt and tokens before it) under the policy, or under the reference.

        Every rank must pass the same number of sequences (which may differ between ranks).
        """
        rows = self.config.micro_batch_prompts * (4 if self.method.negatives else 2)
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

    def _micro_batches(self, batch: Batch, total: int) -> Iterator[tuple[Sequence[Example], float]]:
        """Exactly `micro_batches` lists of examples, each with its share of the step; a filler's share is 0."""
        size = self.config.micro_batch_prompts
        # Examples of similar length share a micro-batch: less padding.
        examples = sorted(batch.examples, key=longest_sequence) if self.micro_batches > 1 else batch.examples
        for index in range(self.micro_batches):
            real = examples[index * size : (index + 1) * size]
            yield (real, len(real) / total) if real else ([batch.filler or batch.examples[0]], 0.0)

    def _evaluate(self, examples: Sequence[Example], module: Any) -> Evaluated:
        shared = max(map(longest_sequence, examples)) <= self.policy.longest_shared
        block = pack_examples(examples, shared=shared, device=self.device)
        reference = None
        if not self.method.uses_reference:
            logprob = self._logprobs(module, block)
        elif self._reference is None:
            logprob, reference = module(*block.tensors(), with_reference=True)
        else:
            with torch.no_grad():
                reference = self._reference_logprobs(block)
            logprob = self._logprobs(module, block)
        return Evaluated(examples=examples, block=block, logprob=logprob, reference=reference)

    def _coefficients(self, batch: Batch, total: int) -> Tensor:
        """[K] by the method, from its objectives' gradients over all ranks' examples."""
        assert isinstance(self.method, Combines)
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self._seed_dropout(batch.step)
        gradients_KD: Tensor | None = None
        weight_K = torch.zeros(len((batch.filler or batch.examples[0]).preference), dtype=torch.float64)
        for examples, share in self._micro_batches(batch, total):
            # Not through DeepSpeed's engine, which lets no gradient out but by its own `backward`.
            losses_K = self.method.objective_losses(self._evaluate(examples, self.policy)) * share
            rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses_K]
            part_KD = torch.stack([torch.cat([each.flatten().float() for each in row]) for row in rows])
            gradients_KD = part_KD if gradients_KD is None else gradients_KD + part_KD
            if share:
                weight_K += torch.tensor([example.preference for example in examples], dtype=torch.float64).sum(0)
        assert gradients_KD is not None
        weight_K = weight_K.to(self.device) / total
        if self.world_size > 1:
            dist.all_reduce(gradients_KD)
            dist.all_reduce(weight_K)
        gram_KK = (gradients_KD @ gradients_KD.T).double()
        if not gram_KK.isfinite().all():
            raise PoisonedUpdateError(
                f"step {batch.step}: an objective's gradient is not finite; the optimizer step was not taken",
                batch.step,
            )
        return self.method.combine(gram_KK.cpu(), weight_K.cpu()).to(self.device)

    def _seed_dropout(self, step: int) -> None:
        """Adapter dropout is a function of (seed, step, rank), so a resumed run repeats it."""
        torch.manual_seed(derive_seed(self.seed, step, self.rank))

    @staticmethod
    def _logprobs(module: Any, block: SequenceBlock) -> Tensor:
        return module(*block.tensors())

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

    def _check_batch(self, batch: Batch, total: int) -> None:
        if not 0 < total <= self.examples_per_step:
            raise LearnerError(
                f"step {batch.step}: the examples of a step must number between 1 and examples_per_step = "
                f"{self.examples_per_step}, got {total}"
            )
        room = self.micro_batches * self.config.micro_batch_prompts
        if len(batch.examples) > room:
            raise LearnerError(
                f"step {batch.step}: rank {self.rank} takes at most {self.micro_batches} x "
                f"{self.config.micro_batch_prompts} = {room} examples, got {len(batch.examples)}"
            )
