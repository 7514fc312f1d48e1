"""How a trained policy is steered, kept beside its weights: without it, the weights cannot be asked anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from learner.methods import METHODS
from orchestrator.errors import BadInput
from orchestrator.recipes import describe_errors
from rewards.config import PreferencesConfig, Section
from rewards.preferences import PromptRenderer
from rewards.targets import TargetRenderer

if TYPE_CHECKING:
    from orchestrator.config import Recipe

FILE_NAME = "mi_epo.json"
AsksFor = Literal["weights", "levels"]


class PolicyConditioning(Section):
    """RUN/policy/mi_epo.json."""

    objectives: tuple[str, ...] = Field(min_length=1)
    preferences: PreferencesConfig
    asks_for: AsksFor = "weights"
    """What is printed for a user's w: the weights, or the reward levels that they map to (method ric)."""
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)

    def renderer(self, tokenizer: Any) -> PromptRenderer:
        """What writes a user's w into the policy's prompt."""
        plain = PromptRenderer(self.preferences.conditioning, self.objectives, self.preferences.decimals, tokenizer)
        return asked_renderer(self.asks_for, plain)


def asked_renderer(asks_for: AsksFor, renderer: PromptRenderer) -> PromptRenderer:
    """What writes a user's w into a trained policy's prompt, with the templates of `renderer`."""
    return TargetRenderer.like(renderer) if asks_for == "levels" else renderer


def save_conditioning(policy: Path, recipe: "Recipe") -> None:
    record = PolicyConditioning(
        objectives=recipe.objective_names,
        preferences=recipe.preferences,
        asks_for=METHODS[recipe.method.type].asks_for,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
    )
    (policy / FILE_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_conditioning(policy: Path) -> PolicyConditioning:
    file = policy / FILE_NAME
    try:
        return PolicyConditioning.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(f"{policy}: is not a policy trained by mi-epo (no {FILE_NAME})") from None
    except ValidationError as error:
        raise BadInput("\n".join(describe_errors(error, str(file)))) from None
