"""A training run's crew in this process: no Ray, no engine, no reward model, but the same calls and the same rules.

The policy is one number, moved by what it is updated with; what is sampled, scored and answered follows from that
number and from the requests, so that two runs agree only where they did the same with the same.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from actors.types import Response, Rollout
from learner.types import PoisonedUpdateError, StepReport, SyncReport, WeightManifest
from orchestrator.errors import ComponentLost
from orchestrator.run.batching import ScoredBatch
from orchestrator.run.sampling import Scored
from orchestrator.run.wiring import Crew

LENGTHS = (2, 3, 5)


class Killed(BaseException):
    """The driver's process ends here: nobody may catch it."""


def digest(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


class FakeFleet:
    """Holds the number that the learner last pushed; sampling asks for it by its version."""

    def __init__(self, learner: "FakeLearner") -> None:
        self.learner = learner
        self.version = -1
        self.policy = 0

    def push_weights(self, policy_version: int) -> SyncReport:
        self.version, self.policy = policy_version, self.learner.policy
        return SyncReport(manifest=WeightManifest(policy_version=policy_version, entries=(), total_bytes=8), seconds=0)


class FakeSampler:
    def __init__(self, fleet: FakeFleet, num_objectives: int, logprob: float, silent: bool) -> None:
        self.fleet = fleet
        self.silent = silent  # judges say nothing of what is trained on
        self.logprob = logprob  # of any token; the learner says -1
        self.num_objectives = num_objectives

    def submit(self, batch, policy_version):
        scored = self.sample(batch.requests, policy_version)
        scores = scored.scores["reward"] * (np.nan if self.silent else 1)
        pending: Future[ScoredBatch] = Future()
        pending.set_result(ScoredBatch(batch=batch, rollouts=scored.rollouts, scores=scores, seconds=scored.seconds))
        return pending

    def sample(self, requests, policy_version, *, judges=("reward",), temperature=None, arrived=None):
        assert policy_version == self.fleet.version, "sampled by other weights than were asked for"
        rollouts = tuple(self._answer(request) for request in requests)
        scores = np.array([[self._scores(response.text) for response in each.responses] for each in rollouts])
        return Scored(rollouts=rollouts, scores=dict.fromkeys(judges, scores), seconds={"generate": 0.0, "score": 0.0})

    def logprobs(self, prompt_ids, response_ids):
        return np.array([self.logprob * len(response) for response in response_ids])

    def use_judges(self, fitted):
        raise AssertionError("none of these recipes has annotators")

    def score(self, rollouts, judge, objectives, *, timeout_s):
        raise AssertionError("none of these recipes has annotators")

    def _scores(self, text):
        return [digest(k, text) % 1000 / 100 for k in range(self.num_objectives)]

    def _answer(self, request):
        responses = []
        for j in range(request.num_responses):
            drawn = digest(self.fleet.policy, request.seed, request.prompt_ids, j)
            tokens = tuple(20 + digest(drawn, t) % 60 for t in range(LENGTHS[drawn % 3]))
            text = " ".join(f"t{token}" for token in tokens)
            responses.append(
                Response(token_ids=tokens, text=text, finish_reason="stop", logprobs=(self.logprob,) * len(tokens))
            )
        version = self.fleet.version
        return Rollout(
            request=request, responses=tuple(responses), min_policy_version=version, max_policy_version=version
        )


class FakeLearner:
    """Args:
    troubles: step -> what happens when it is updated, once for every crew that is hired: an exception to raise.
    """

    def __init__(self, troubles: dict[int, list[BaseException]], grad_norm: float) -> None:
        self.troubles = troubles
        self.grad_norm = grad_norm
        self.policy = 0
        self.updates: list[int] = []
        self.remarks = ("what its ranks say of the model",)

    def update(self, batch):
        if self.troubles.get(batch.step):
            raise self.troubles[batch.step].pop(0)
        seen = [(each.prompts, each.responses, repr(each.targets), each.preference) for each in batch.examples]
        self.policy = digest(self.policy, batch.step, seen)
        self.updates.append(batch.step)
        loss = self.policy % 997 / 997
        metrics = {"loss": loss, "loss_alignment": loss, "logratio_mean": 0.0, "learning_rate": 0.1}
        metrics |= {"grad_norm": self.grad_norm}
        return StepReport(step=batch.step, metrics=metrics, learner_tokens=len(seen))

    def token_logprobs(self, prompt_ids, response_ids, *, reference=False):
        return [[-1.0] * len(response) for response in response_ids]

    def top_tokens(self, prompt_ids, response_ids):
        return [(1.0, 0.9)] * len(response_ids)

    def save_policy(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").write_text(str(self.policy))

    def save_checkpoint(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "learner.json").write_text('{"identity": {}, "adam_steps": 1, "files": {}}')
        (path / "policy.json").write_text(json.dumps(self.policy))

    def load_checkpoint(self, path: Path) -> None:
        self.policy = json.loads((path / "policy.json").read_text())


class FakeHire:
    """Hires crews whose learner meets `troubles` (step -> exceptions, each raised once); remembers them in `crews`."""

    def __init__(
        self,
        troubles: Mapping[int, Sequence[BaseException]] | None = None,
        *,
        engine_logprob: float = -1.0,
        grad_norm: float = 1.0,
        silent: bool = False,
    ) -> None:
        self.engine_logprob = engine_logprob
        self.grad_norm = grad_norm
        self.silent = silent
        self.troubles = {step: list(errors) for step, errors in (troubles or {}).items()}
        self.crews: list[Crew] = []

    @contextlib.contextmanager
    def __call__(self, recipe, run_name, failures, stop, say) -> Iterator[Crew]:
        learner = FakeLearner(self.troubles, self.grad_norm)
        fleet = FakeFleet(learner)
        sampler = FakeSampler(fleet, recipe.num_objectives, self.engine_logprob, self.silent)
        crew = Crew(sampler=sampler, fleet=fleet, learner=learner)
        self.crews.append(crew)
        yield crew

    @property
    def updates(self) -> list[list[int]]:
        """Steps that each crew's learner was updated with."""
        return [crew.learner.updates for crew in self.crews if isinstance(crew.learner, FakeLearner)]


def poisoned(step: int) -> PoisonedUpdateError:
    return PoisonedUpdateError(f"step {step}: the loss is nan; the optimizer step was not taken", step)


def lost() -> ComponentLost:
    return ComponentLost("rollout-0: not back in time")
