"""A vLLM engine inside a Ray actor: seeded sampling that streams, log-probabilities, weights replaced in place."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from actors.config import RolloutConfig
from actors.engine import engine_environment, sampling_params, scoring_params, weight_backend
from actors.metrics import EngineMetrics
from actors.processes import ActorSpec, network_environment, start_actors
from actors.types import (
    EngineFailedError,
    EngineRestartedError,
    GenerationRequest,
    Response,
    Rollout,
    RolloutError,
    StaleWeightsError,
    response_seed,
)
from rewards.environment import one_line
from rewards.vocabulary import first_without_row, without_row

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

    from actors.weights import WeightReceiver


class RolloutActor:
    """One engine. It starts with the model folder's own weights, which are policy version 0.

    One call runs at a time; Ray queues the rest in order, so a weight update never meets a generation in flight. A dead
    one is started again by Ray, without a model: every call raises EngineRestartedError until ``ready`` was called.

    Args:
        config: the recipe's ``rollout`` section.
        model: Hugging Face folder or hub id.
        engine: this engine's number, for names, metrics and messages.
        seed: seeds what no request seeds (nothing, in a run).
    """

    def __init__(self, config: RolloutConfig, *, model: str, engine: int, seed: int) -> None:
        self.config = config
        self.model = model
        self.engine = engine
        self.seed = seed
        self._llm: Any = None
        self._version: int | None = None
        self._asleep = False
        self._calls = 0

    def __repr__(self) -> str:
        return f"RolloutActor(engine={self.engine})"

    @property
    def llm(self) -> Any:
        """The ``vllm.LLM`` under it, awake; in process only, for those who measure what this class costs."""
        self._wake()
        return self._llm

    def ready(self) -> dict[str, Any]:
        """Load the engine (once) and tell what runs here: engine, pid, seconds taken, versions, weight backend.

        Raises:
            RolloutError: vLLM refused the model or the sizes; one line.
        """
        if self._llm is None:
            started = time.monotonic()
            try:
                self._load()
            except Exception as error:
                raise RolloutError(f"vLLM could not load {self.model!r}: {one_line(error)}") from error
            self._version = 0
            self._seconds = time.monotonic() - started
            self._metrics = EngineMetrics(self.engine)
            self._metrics.holds(0)
        from importlib.metadata import version

        import torch
        import vllm

        return {
            "engine": self.engine,
            "pid": os.getpid(),
            "policy_version": self._version,
            "start_seconds": self._seconds,
            "weight_backend": self._weights.backend,
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "ray": version("ray"),
        }

    def policy_version(self) -> int | None:
        """Version of the weights in the engine; None while an update is open or after one failed."""
        return self._version

    def generate(
        self, requests: list[GenerationRequest], policy_version: int, temperature: float | None = None
    ) -> Iterator[list[Rollout]]:
        """Answer the requests; yields groups of finished ones while the rest are being decoded.

        A group holds ``stream_group`` requests with all their responses (the last one may hold fewer), in the order
        they finished. Same request, same tokens (on GPU with `rollout.batch_invariant`): every response has
        its own seed.

        Args:
            requests: each with its own ``request_id``.
            policy_version: the weights the caller means.
            temperature: instead of the recipe's; 0 is greedy.

        Raises:
            StaleWeightsError: the engine holds other weights.
            RolloutError: a request vLLM refuses (named).
            EngineFailedError: a step of the engine failed, or ``generate_timeout_s`` is over.
        """
        held = self._loaded_version()
        if policy_version != held:
            raise StaleWeightsError(f"engine {self.engine}: holds policy version {held}, asked for {policy_version}")
        if len({request.request_id for request in requests}) != len(requests):
            raise RolloutError("request_id must be unique within one generate call")
        engine = self._llm.llm_engine
        deadline = time.monotonic() + self.config.generate_timeout_s
        answers: list[list[Response | None]] = [[None] * request.num_responses for request in requests]
        waiting: dict[str, tuple[int, int]] = {}
        finished: list[Rollout] = []
        self._calls += 1
        try:
            for i, request in enumerate(requests):
                for j in range(request.num_responses):
                    key = f"{self._calls}/{i}/{j}"
                    seed = response_seed(request.seed, j)
                    self._add(key, request, sampling_params(self.config, seed=seed, temperature=temperature))
                    waiting[key] = (i, j)
            while waiting:
                if time.monotonic() > deadline:
                    raise EngineFailedError(
                        f"generate: {len(waiting)} of {sum(map(len, answers))} responses unfinished after "
                        f"rollout.generate_timeout_s = {self.config.generate_timeout_s:g} s"
                    )
                for output in self._step():
                    i, j = waiting.pop(output.request_id)
                    answers[i][j] = self._response(output.outputs[0])
                    complete = [response for response in answers[i] if response is not None]
                    if len(complete) == requests[i].num_responses:
                        finished.append(_rollout(requests[i], complete, policy_version))
                while len(finished) >= self.config.stream_group:
                    yield self._counted(finished[: self.config.stream_group])
                    finished = finished[self.config.stream_group :]
            if finished:
                yield self._counted(finished)
        finally:
            if waiting:  # an error, or the consumer closed the generator
                with contextlib.suppress(Exception):  # of an engine that broke: the first error is the one to tell
                    engine.abort_request(list(waiting))

    def token_logprobs(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Per response token, log pi(token | prompt and tokens before it) at temperature 1, under the loaded weights.

        All tokens but the last are scored as a prompt (which never reads the prefix cache), the last as a forced
        sample: so a sequence that fills the context can be scored too.

        Raises:
            StaleWeightsError: in the middle of a weight update.
            RolloutError: a sequence vLLM refuses.
            EngineFailedError: a step of the engine failed.
        """
        self._loaded_version()
        pairs = list(zip(prompt_ids, response_ids, strict=True))
        scored = [index for index, (_, response) in enumerate(pairs) if response]
        inputs = [{"prompt_token_ids": [*pairs[i][0], *pairs[i][1][:-1]]} for i in scored]
        sampling = [scoring_params(pairs[i][1][-1]) for i in scored]
        for prompt, response in pairs:
            self._require_rows([*prompt, *response], "token_logprobs")
        try:
            outputs = self._llm.generate(inputs, sampling, use_tqdm=False) if scored else []
        except ValueError as error:
            raise RolloutError(f"token_logprobs: {one_line(error)}") from error
        except Exception as error:
            raise EngineFailedError(f"engine {self.engine}: token_logprobs: {one_line(error)}") from error
        logprobs_N_T: list[list[float]] = [[] for _ in pairs]
        for i, output in zip(scored, outputs, strict=True):
            prompt, response = pairs[i]
            rows = [*output.prompt_logprobs[len(prompt) :], output.outputs[0].logprobs[0]]
            logprobs_N_T[i] = [row[token].logprob for row, token in zip(rows, response, strict=True)]
        return logprobs_N_T

    def logprobs(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> list[float]:
        """[N] sums of ``token_logprobs``; 0 for an empty response."""
        return [sum(logprobs_T) for logprobs_T in self.token_logprobs(prompt_ids, response_ids)]

    def sleep(self) -> None:
        """Leave the GPU to the learner: the weights go to host memory, the cache is dropped. The next call wakes it up.

        Raises:
            EngineFailedError: vLLM could not.
        """
        self._check_loaded()
        if self._asleep:
            return
        try:
            self._llm.sleep(level=1)  # the level whose weights come back as they were, so the policy version stays true
        except Exception as error:
            raise EngineFailedError(f"engine {self.engine}: could not go to sleep: {one_line(error)}") from error
        self._asleep = True

    def weights_check(self, info: dict[str, Any]) -> dict[str, int]:
        """Accept what a sender announces, before anybody waits for anybody; ends what an earlier sender had begun.

        Args:
            info: ``backend`` (``host`` or ``nccl``), ``names`` of all tensors to come and, where these are adapters
                alone, ``adapter`` (the fields of ``actors.adapters.AdapterPlan``).

        Returns:
            name -> checksum of every weight that adapters are merged over; nothing when all weights travel.

        Raises:
            WeightTransferError: another backend than this engine's, part of the model is not announced, or the base is
                not to be found under the announced names.
        """
        return self._receiver.check(info)

    def weights_init(self, info: dict[str, Any]) -> None:
        """Meet the sender whose announcement was accepted.

        Args:
            info: vLLM's NCCL rendezvous; nothing for ``host``.

        Raises:
            WeightTransferError: ``weights_check`` has accepted nothing.
        """
        self._receiver.init(info)

    def weights_start(self) -> None:
        """Open an update: the engine serves nobody until it is finished. Clears what an aborted one left behind."""
        receiver = self._receiver
        self._version = None
        receiver.start()

    def weights_update(self, info: dict[str, Any], data: list[Any] | None = None) -> None:
        """Receive one bucket: ``names, dtype_names, shapes`` [M each] and, from host memory, ``data``: M uint8 arrays.

        Raises:
            WeightTransferError: no open update, sizes that do not match, or a tensor the model cannot take. The update
                is over then; ``weights_start`` opens the next one.
        """
        self._receiver.update(info, data)

    def weights_finish(self, policy_version: int) -> dict[str, int]:
        """Put the update into service as ``policy_version``.

        Returns:
            name -> ``actors.tensors.checksum`` of each tensor as it was received, before vLLM loaded it.

        Raises:
            WeightTransferError: an announced tensor did not arrive, the workers of one engine disagree, or cached
                prefixes of the old weights could not be dropped. The engine then refuses to generate.
        """
        checksums = self._receiver.finish(policy_version)
        self._version = policy_version
        self._metrics.holds(policy_version)
        return checksums

    def _load(self) -> None:
        if self.config.num_gpus:
            os.environ.update(network_environment())  # as rank 0, whom its workers meet
        # Symptom: the first line of every run on CPU says that Triton has no CPU backend. Cause: vLLM says it while it
        # is imported, before VLLM_LOGGING_LEVEL counts. Delete when it counts from the start.
        logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
        from vllm import SamplingParams

        from actors.engine import load_engine
        from actors.weights import WeightReceiver

        self._llm = load_engine(self.config, model=self.model, seed=self.seed)
        # One token, because some of what vLLM cannot run (a head size, say) shows only in the first step.
        self._llm.generate(
            [{"prompt_token_ids": [0]}], SamplingParams(max_tokens=1, temperature=0.0, detokenize=False), use_tqdm=False
        )
        self._tokenizer = self._llm.get_tokenizer()
        self._weights = WeightReceiver(self._llm, backend=weight_backend(self.config), model=self.model)

    @property
    def _receiver(self) -> WeightReceiver:
        self._wake()
        return self._weights

    def _wake(self) -> None:
        """Whatever touches the model comes through here first."""
        self._check_loaded()
        if not self._asleep:
            return
        try:
            self._llm.wake_up()
        except Exception as error:
            raise EngineFailedError(f"engine {self.engine}: could not wake up: {one_line(error)}") from error
        self._asleep = False

    def _check_loaded(self) -> None:
        if self._llm is None:
            raise EngineRestartedError(f"engine {self.engine}: its process was started again, no model is loaded")

    def _loaded_version(self) -> int:
        self._wake()
        if self._version is None:
            raise StaleWeightsError(f"engine {self.engine}: holds no policy version, a weight update is open or failed")
        return self._version

    def _add(self, key: str, request: GenerationRequest, sampling: Any) -> None:
        self._require_rows(request.prompt_ids, f"request {request.request_id!r}")
        try:
            self._llm.llm_engine.add_request(key, {"prompt_token_ids": list(request.prompt_ids)}, sampling)
        except Exception as error:
            raise RolloutError(f"request {request.request_id!r}: {one_line(error)}") from error

    def _require_rows(self, token_ids: Sequence[int], where: str) -> None:
        """Raises RolloutError: an id that the model has no row for, on which vLLM would break as a whole."""
        rows = self._llm.model_config.get_vocab_size()
        beyond = first_without_row(token_ids, rows)
        if beyond is not None:
            raise RolloutError(f"{where}: {without_row(self._tokenizer.decode([beyond]), beyond, rows)}")

    def _step(self) -> list[Any]:
        try:
            return self._llm.llm_engine.step()
        except Exception as error:
            raise EngineFailedError(f"engine {self.engine}: {one_line(error)}") from error

    def _response(self, output: Any) -> Response:
        return Response(
            token_ids=tuple(output.token_ids),
            text=self._tokenizer.decode(output.token_ids, skip_special_tokens=True).strip(),
            finish_reason=output.finish_reason,
            logprobs=tuple(output.logprobs.logprobs),  # flat; one a position, the sampled token's
        )

    def _counted(self, group: list[Rollout]) -> list[Rollout]:
        self._metrics.sampled(sum(len(response.token_ids) for rollout in group for response in rollout.responses))
        self._metrics.look_at(self._llm)
        return group


def _rollout(request: GenerationRequest, responses: Sequence[Response], version: int) -> Rollout:
    return Rollout(request=request, responses=tuple(responses), min_policy_version=version, max_policy_version=version)


def start_rollouts(
    config: RolloutConfig, *, model: str, run_name: str, seed: int, reserved: PlacementGroup | None = None
) -> list[ActorHandle]:
    """Start every engine side by side and wait until all have loaded.

    Args:
        reserved: the placement group whose bundle i engine i shares with a learner rank; None: one of their own.

    Returns:
        Ray actor handles in engine order, named ``<run_name>/rollout-<engine>``.

    Raises:
        RolloutError: no room on the cluster, or an engine that could not load; nothing is left running.
    """
    return start_actors(
        RolloutActor,
        [
            ActorSpec(
                name=f"{run_name}/rollout-{engine}",
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus * config.tensor_parallel_size,
                env=engine_environment(config, model),
                node_labels=config.node_labels,
                kwargs={"config": config, "model": model, "engine": engine, "seed": seed},
            )
            for engine in range(config.engines)
        ],
        group=f"{run_name}/rollout",
        reserved=reserved,
        placement=config.placement,
        timeout_s=config.start_timeout_s,
        error=RolloutError,
    )
