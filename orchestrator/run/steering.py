"""How a trained policy is steered, kept beside its weights: without it, the weights cannot be asked anything."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learner.methods import METHODS
from orchestrator.errors import BadInput
from orchestrator.recipes import read_record
from rewards.config import PreferencesConfig
from rewards.preferences import PromptRenderer
from rewards.sampling import SamplingSection, read_token_ids
from rewards.section import ObjectiveNames
from rewards.simplex import PreferenceError, parse_preference
from rewards.targets import TargetRenderer

if TYPE_CHECKING:
    from orchestrator.config import Recipe

FILE_NAME = "mi_epo.json"
AsksFor = Literal["weights", "levels"]


class PolicyConditioning(SamplingSection):
    """RUN/policy/mi_epo.json."""

    objectives: ObjectiveNames = Field(min_length=1)
    preferences: PreferencesConfig
    asks_for: AsksFor = "weights"
    """What is printed for a user's w: the weights, or the reward levels that they map to (method ric)."""
    top_k: Literal[0] = 0
    min_p: Literal[0] = 0
    repetition_penalty: Literal[1] = 1
    """Training draws from the whole policy, and so does what asks it afterwards (`rewards.sampling.WHOLE_POLICY`)."""

    def renderer(self, tokenizer: Any) -> PromptRenderer:
        """What writes a user's w into the policy's prompt."""
        plain = PromptRenderer(self.preferences.conditioning, self.objectives, self.preferences.decimals, tokenizer)
        return asked_renderer(self.asks_for, plain)


def asked_renderer(asks_for: AsksFor, renderer: PromptRenderer) -> PromptRenderer:
    """What writes a user's w into a trained policy's prompt, with the templates of `renderer`."""
    return TargetRenderer.like(renderer) if asks_for == "levels" else renderer


def save_conditioning(policy: Path, recipe: "Recipe") -> None:
    """Write into the policy's folder how it is steered and sampled."""
    record = PolicyConditioning(
        objectives=recipe.objective_names,
        preferences=recipe.preferences,
        asks_for=METHODS[recipe.method.type].asks_for,
        max_new_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.rollout.temperature,
        top_p=recipe.rollout.top_p,
    )
    write_generation_config(policy, record)
    (policy / FILE_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_generation_config(policy: Path, sampling: SamplingSection) -> None:
    """Have transformers and servers sample the policy as it was trained, not as the start's makers recommend."""
    token_ids = read_token_ids(policy)
    record = json.dumps(sampling.generation_config(token_ids), indent=2)
    (policy / "generation_config.json").write_text(record + "\n", encoding="utf-8")


def load_conditioning(policy: Path) -> PolicyConditioning:
    if not (policy / FILE_NAME).is_file():
        raise BadInput(f"{policy}: is not a policy trained by mi-epo (no {FILE_NAME})")
    return read_record(PolicyConditioning, policy / FILE_NAME)


def conditioning_of(target: Path) -> PolicyConditioning:
    """Of the policy of a run, or of a folder; a rewarded soup's experts have the same. Raises BadInput."""
    experts = find_experts(target)
    return load_conditioning(experts[0] if experts else find_policy(target))


def find_policy(path: Path) -> Path:
    """The policy folder of a run directory, or the folder itself."""
    return path / "policy" if (path / "policy" / "config.json").is_file() else path


def find_experts(run: Path) -> list[Path]:
    """Policy folders of a rewarded soup's experts, in the order of the objectives; empty for any other run."""
    found = sorted((run / "experts").glob("*/policy"))
    if not found:
        return []
    experts = []
    for objective in load_conditioning(found[0]).objectives:
        named = [policy for policy in found if policy.parent.name.endswith(f"-{objective}")]
        if not named:
            raise BadInput(f"{run}: holds a soup that lacks the expert of {objective!r}")
        # The shortest: one objective's name may end like another's.
        experts.append(min(named, key=lambda policy: len(policy.parent.name)))
    return experts


def read_preference(items: Sequence[str], objectives: Sequence[str]) -> np.ndarray:
    """`NAME=W` items -> [K] in objective order. Raises BadInput."""
    weights: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        if name in weights:
            raise BadInput(f"--prefer {item!r}: must give {name!r} one weight, gave {weights[name]:g} already")
        try:
            weights[name] = float(text)
        except ValueError:
            raise BadInput(f"--prefer {item!r}: must read NAME=WEIGHT with a number, got {text!r}") from None
    try:
        return parse_preference(weights, objectives)
    except PreferenceError as error:
        raise BadInput(f"--prefer: {error}") from None
