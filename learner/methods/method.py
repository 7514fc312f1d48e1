"""What a training method is: from a prompt's scored responses to targets, and from targets to a loss.

A method is one class in one file. What happens on the driver (`label`, the scale of the scores, where w comes from) and
what happens on every rank (`loss`) stand together; neither has a state, so a step can be made again. A method that sets
nothing else draws w from the recipe's sampler, passes every response under G(x, w+) alone beside a frozen reference,
and adds its objectives up. Shapes: N responses, K objectives. No torch at load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, runtime_checkable

from pydantic import Field

from learner.examples import Example, Group, T
from rewards.metrics import Metric
from rewards.normalize import Transform, log_sigmoid, standardize
from rewards.section import Section
from rewards.targets import quantile_levels

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses import LossOutput
    from learner.sequences import Evaluated
    from rewards.simplex import WeightSampler


Scale = Literal["standard", "log-sigmoid", "quantile"]
TRANSFORMS: dict[Scale, Transform] = {
    "standard": standardize,
    "log-sigmoid": log_sigmoid,
    "quantile": quantile_levels,
}


class MethodSection(Section):
    """Base of the recipe's `method` section: the method's name as `type`, and its own settings."""

    type: str
    scores: Scale = "standard"
    """What the method sees of a score, relative to the start's: deviations from the mean; `log-sigmoid`, the
    log-probability of being good (arXiv 2402.00742); or `quantile`, the share of the start's that score no higher."""


class AnchoredSection(MethodSection):
    """Settings of every method whose loss is anchored to the start."""

    beta_c: float = Field(default=0.1, gt=0)
    """Strength of the KL anchor in the alignment loss (the papers')."""
    kl_budget: float | None = Field(default=None, gt=0)
    """Nats that the mean response may be from the start. Beyond it beta_c is raised from step to step, and lowered
    again below it, never under its own value (`anchor` in the metrics). Null: no budget."""


ANCHOR = Metric(
    key="anchor",
    label="anchor",
    definition="Factor on beta_c that `method.kl_budget` asked for in the step's update; 1 without a budget.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a method must know of the rest of the recipe to say whether it can serve it.

    Example: Work(num_objectives=2, num_responses=2, steps=100, zero_stage=0, fixed=False)
    """

    num_objectives: int
    num_responses: int
    """Sampled for each prompt."""
    steps: int
    zero_stage: int
    fixed: bool
    """One vector throughout instead of a sampler."""
    temperature: float = 1.0
    """At which responses are sampled."""


class Method(Generic[T]):
    """Args:
    config: of the class's own `Config`.
    """

    Config: ClassVar[type[MethodSection]]
    """The settings, with their defaults and sources."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What its loss reports beyond `rewards.metrics.STEP_METRICS`."""
    tuned_by: ClassVar[str] = "method.beta_c"
    """Key of the recipe that decides how far the policy drifts, so the one a fair comparison chooses for it."""
    min_responses: ClassVar[int] = 2
    """Complete responses that a prompt must have to be of use."""
    uses_reference: ClassVar[bool] = True
    """Whether the loss compares with the frozen start."""
    asks_for: ClassVar[Literal["weights", "levels"]] = "weights"
    """What is printed for a user's w once the policy is trained."""

    def __init__(self, config: MethodSection) -> None:
        self.config = config

    @property
    def transform(self) -> Transform:
        """Raw scores -> what `label` sees, relative to the start's scores."""
        return TRANSFORMS[self.config.scores]

    @property
    def negatives(self) -> bool:
        """Passes every response under the w- as well."""
        return False

    def problems(self, work: Work) -> Iterator[str]:
        """Why the recipe cannot be served, a line each: key, rule and value."""
        if work.num_responses < self.min_responses:
            yield f"loop.responses_per_prompt must be at least {self.min_responses}, got {work.num_responses}"
        if self.min_responses > 1 and work.temperature == 0:
            yield "rollout.temperature must be above 0, as responses to a prompt must differ, got 0"
        if isinstance(self, Combines) and work.zero_stage == 3:
            yield "learner.zero_stage must be at most 2 where gradients are combined for each objective, got 3"

    def sampler(self, step: int, steps: int) -> WeightSampler | None:
        """Where the vectors of this step come from; None: from the recipe's `preferences`."""
        return None

    def staleness(self, step: int, steps: int, bound: int) -> int:
        """Most versions between the policy that samples this step's batch and the one updated with it.

        `bound`: the recipe's `loop.max_staleness`.
        """
        return bound

    def examples_per_prompt(self, num_responses: int) -> int:
        """Most examples that one prompt can give."""
        return 1

    def responses_per_example(self, num_responses: int, num_objectives: int) -> int:
        """Most responses that one example passes, of so many to a prompt."""
        return num_responses // self.examples_per_prompt(num_responses)

    def label(self, group: Group) -> T | None:
        """What `loss` needs to know of the group's responses; None leaves the prompt out of the update."""
        raise NotImplementedError

    def examples(self, group: Group) -> list[Example[T]]:
        """The prompt's share of the update."""
        targets = self.label(group)
        if targets is None:
            return []
        prompts = group.prompts if self.negatives else group.prompts[:1]
        preference = tuple(group.preference.tolist())
        return [Example(prompts=prompts, responses=group.responses, targets=targets, preference=preference)]

    def batch(self, groups: Sequence[Group]) -> list[Example[T]]:
        """The whole update: of every prompt its share. What looks at all prompts together starts here."""
        return [example for group in groups for example in self.examples(group)]

    def loss(self, at: Evaluated[T], coefficients: Tensor | None = None) -> LossOutput:
        """Mean over the examples, on a rank; `coefficients` [K] from `Combines.combine`."""
        raise NotImplementedError


@runtime_checkable
class Combines(Protocol):
    """A method that weighs its objectives by their gradients: one more backward pass for each of them."""

    def objective_losses(self, at: Evaluated) -> Tensor:
        """[K] parts of the loss, with gradient; their sum is the loss under coefficients of 1."""
        ...

    def combine(self, gram: Tensor, weight: Tensor) -> Tensor:
        """Coefficients [K] of the parts.

        Args:
            gram: float64 [K, K], inner products of the parts' gradients over the whole batch.
            weight: float64 [K], mean w+ of the batch's examples.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What merges came to. Example: Tried(coefficients=((1.0, 0.0), (0.5, 0.5)), rewards=((0.8, -0.2), (0.4, 0.3)))"""

    coefficients: tuple[tuple[float, ...], ...]
    """[C][K]"""
    rewards: tuple[tuple[float, ...], ...]
    """[C][K] mean normalised scores on training prompts."""


@runtime_checkable
class Merger(Protocol):
    """A method that trains several policies and merges them for each w."""

    def parts(self, num_objectives: int, steps: int) -> list[tuple[str, ...]]:
        """Overrides of the recipe that train each part, as `section.key=value` items."""
        ...

    def candidates(self, num_objectives: int) -> list[tuple[float, ...]]:
        """Coefficients [C][K] to be tried on training prompts before any are asked for; none: there is no trial."""
        ...

    def coefficients(self, preference: Sequence[float], tried: Tried | None) -> list[float]:
        """Of the parts' weights in the policy of w [K]; what they lack of a sum of 1 is the start's."""
        ...
