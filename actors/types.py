"""What enters and leaves the rollout engines. No torch, Ray or vLLM here.

Every record is frozen and picklable; token ids are plain ints so that records cross processes without arrays.
"""

from dataclasses import dataclass

from rewards.environment import derive_seed
from rewards.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt under one preference vector, to be answered ``num_responses`` times.

    Response j is sampled with ``response_seed(seed, j)``: the same request gives the same tokens in any batch
    (on GPU with `rollout.batch_invariant`).

    Example:
        GenerationRequest(request_id="step3/0", prompt=Prompt(text="how do I patch a tyre?"), prompt_ids=(1, 17, 4),
                          preference=(0.7, 0.3), num_responses=2, seed=90210)
    """

    request_id: str
    """Unique within one ``generate`` call."""
    prompt: Prompt
    """For reward models, never with the text of the preference."""
    prompt_ids: tuple[int, ...]
    """[T_prompt] tokens of the conditioned prompt G(x, w): the whole model input."""
    preference: tuple[float, ...]
    """[K] weights in recipe order, sum 1."""
    num_responses: int
    seed: int

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"request {self.request_id!r}: prompt_ids must not be empty")
        if self.num_responses < 1:
            raise ValueError(f"request {self.request_id!r}: num_responses must be >= 1, got {self.num_responses}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One sampled answer.

    Example:
        Response(token_ids=(5, 9, 2), text="use a kit", finish_reason="stop", logprobs=(-.5, -2.5, -.25))
    """

    token_ids: tuple[int, ...]
    """[T_response] sampled tokens; the end-of-sequence token is included when it was sampled."""
    text: str
    """Detokenised without special tokens, outer white space removed."""
    finish_reason: str
    """``stop`` (end of sequence sampled) or ``length`` (cut at max_new_tokens or at the context's end)."""
    logprobs: tuple[float, ...]
    """[T_response] log pi(token | before) of each of ``token_ids``, the policy's own (temperature 1), in nats."""

    @property
    def logprob(self) -> float:
        """Of the whole response."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A request and its answers, with the policy versions that made them (equal unless weights change mid-way).

    Example:
        Rollout(request=request, responses=(first, second), min_policy_version=3, max_policy_version=3)
    """

    request: GenerationRequest
    responses: tuple[Response, ...]
    """[num_responses], in the order of their seeds."""
    min_policy_version: int
    max_policy_version: int


class RolloutError(RuntimeError):
    """A rollout engine could not start, was called wrongly, or missed a deadline."""


class StaleWeightsError(RolloutError):
    """The engine holds other weights than the caller expects (or none, in the middle of an update)."""


class EngineRestartedError(RolloutError):
    """The engine's process was started again since the caller last spoke to it, and holds no model yet."""


class ActorFailedError(RuntimeError):
    """An actor broke or hangs, though its process lives: what it holds is lost, and only a new process helps."""


class EngineFailedError(RolloutError, ActorFailedError):
    """The same of a rollout engine."""


class WeightTransferError(RolloutError):
    """A weight update does not match what was announced; the engine needs a full push before it serves again."""


def response_seed(seed: int, index: int) -> int:
    """Seed of response ``index`` of a request, in [0, 2^63).

    vLLM derives a sampler's stream from the seed alone, so were the two added, neighbouring requests with seeds s and
    s + 1 would share the streams of their second and first response.
    """
    return derive_seed(seed, index)
