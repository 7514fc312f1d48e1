"""How a number of GPUs is best divided between engines, learner and judges: what `mi-epo plan --gpus` says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cards import Card
from orchestrator.errors import BadInput
from orchestrator.estimate.memory import problems, shares
from orchestrator.estimate.shapes import Shape
from orchestrator.estimate.speed import StepTime, step_time
from orchestrator.recipes import parse_recipe

if TYPE_CHECKING:
    from orchestrator.config import Recipe

UTILIZATIONS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of a GPU's memory by an engine, tried in turn where the recipe's own leaves no room for its neighbours."""
SHARE = 0.45
"""Of a GPU, of an engine and of the rank that it takes turns with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Example: Split(overrides={"rollout.engines": 3, "learner.ranks": 4}, recipe=..., time=StepTime(...))"""

    overrides: dict[str, Any]
    """What makes the asked recipe this one."""
    recipe: "Recipe"
    time: StepTime

    @property
    def judges(self) -> int:
        """GPUs that judges alone are on."""
        return _judges(self.recipe)


def splits(recipe: "Recipe", shape: Shape, card: Card, gpus: int, prompt_tokens: float) -> list[Split]:
    """Those that fit such cards, the fastest first.

    Args:
        prompt_tokens: of an average prompt, w included.

    Raises:
        BadInput: none fits; tells what speaks against the last that was tried.
    """
    found, refused = [], f"its judges take {_judges(recipe)} of them"
    for overrides in _divided(recipe, gpus):
        fitting = overrides
        for utilization in UTILIZATIONS:
            try:
                tried = _with(recipe, fitting)
            except BadInput as error:
                refused = str(error)
                break
            problem = next(iter(problems(tried, card)), None)
            if problem is None:
                time = step_time(tried, shape, card, prompt_tokens)
                if time is None:
                    raise BadInput(f"--gpus: the speed of {card.name} is not known")
                found.append(Split(overrides=fitting, recipe=tried, time=time))
                break
            refused = problem
            fitting = {**overrides, "rollout.gpu_memory_utilization": utilization}
    if not found:
        raise BadInput(f"--gpus: no split of {gpus} x {card.name} fits {recipe.name}: {refused}")
    return sorted(found, key=lambda split: split.time.total)


def _divided(recipe: "Recipe", gpus: int) -> Iterator[dict[str, Any]]:
    """Every whole number of engines and of ranks that use all GPUs; as pairs that take turns too."""
    own, split = gpus - _judges(recipe), recipe.rollout.tensor_parallel_size
    apart = {"rollout.colocated": False, "rollout.num_gpus": 1, "learner.num_gpus": 1}
    for ranks in range(1, own):
        if (own - ranks) % split == 0:
            yield {"rollout.engines": (own - ranks) // split, "learner.ranks": ranks, **apart}
    if own > 0:
        together = {"rollout.colocated": True, "rollout.num_gpus": SHARE, "learner.num_gpus": SHARE}
        alone = {"rollout.tensor_parallel_size": 1, "loop.max_staleness": 0}
        yield {"rollout.engines": own, "learner.ranks": own, **together, **alone}


def _judges(recipe: "Recipe") -> int:
    """GPUs that the judges fill when they share none with an engine or a rank."""
    return len(shares([panel[0].num_gpus for panel in recipe.panels for _ in range(panel[0].replicas)]))


def _with(recipe: "Recipe", overrides: dict[str, Any]) -> "Recipe":
    tree = recipe.model_dump(mode="json")
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return parse_recipe(tree, where="--gpus")
