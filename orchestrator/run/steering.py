"""How a trained policy is steered, kept beside its weights: without it, the weights cannot be asked anything.

And `mi-epo generate`, which asks them: plain transformers, the same renderer as training, no Ray and no vLLM.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learner.methods import METHODS
from orchestrator.errors import BadInput
from orchestrator.plan import check_renderer, load_tokenizer
from orchestrator.recipes import read_record
from rewards.config import ObjectiveNames, PreferencesConfig
from rewards.environment import is_unicode
from rewards.model_files import ModelError
from rewards.preferences import PreferenceError, PromptRenderer, parse_preference
from rewards.pretrained import load_model
from rewards.sampling import SamplingSection, read_token_ids
from rewards.targets import TargetRenderer
from rewards.vocabulary import first_without_row, without_row

if TYPE_CHECKING:
    from orchestrator.config import Recipe

FILE_NAME = "mi_epo.json"
AsksFor = Literal["weights", "levels"]
PLAIN_PROMPT = "hello"
"""On which a policy's prompts are tried before the policy loads."""


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


def generate(
    policy: Path, preference_items: Sequence[str], prompts: Iterator[str], *, seed: int, num_responses: int = 1
) -> Iterator[str]:
    """One answer per prompt and response, sampled as the policy was trained.

    A rewarded soup answers with the average of its experts for these weights.
    """
    experts = find_experts(policy)
    policy = experts[0] if experts else find_policy(policy)
    conditioning = load_conditioning(policy)
    preference = read_preference(preference_items, conditioning.objectives).tolist()

    import torch
    from transformers import GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = load_tokenizer(str(policy.resolve()))
    renderer = conditioning.renderer(tokenizer)
    check_renderer(renderer, [PLAIN_PROMPT], where=f"{policy / FILE_NAME}: preferences.conditioning")
    token_ids = _token_ids(policy, tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = load_model("AutoModelForCausalLM", str(policy), head="whole", dtype="auto").to(device).eval()
    except ModelError as error:
        raise BadInput(str(error)) from None
    if experts:
        _mix(model, experts, preference)
    model.generation_config = GenerationConfig(**conditioning.generation_config(token_ids))
    torch.manual_seed(seed)
    limit = getattr(model.config, "max_position_embeddings", None)
    rows = model.get_input_embeddings().num_embeddings
    for prompt in prompts:
        if not is_unicode(prompt):
            raise BadInput(f"prompt: must be whole characters in UTF-8, got {prompt!r:.100}")
        check_renderer(renderer, [prompt], where="prompt")
        ids = renderer.token_ids(prompt, preference)
        if (beyond := first_without_row(ids, rows)) is not None:
            raise BadInput(f"prompt: the policy {without_row(tokenizer.decode([beyond]), beyond, rows)}")
        if limit is not None and len(ids) + conditioning.max_new_tokens > limit:
            raise BadInput(
                f"prompt: must leave {conditioning.max_new_tokens} of the policy's {limit} tokens for the answer, "
                f"got {len(ids)}"
            )
        inputs = torch.tensor([ids] * num_responses, device=device)
        with torch.no_grad():
            output = model.generate(inputs, attention_mask=torch.ones_like(inputs))
        yield from tokenizer.batch_decode(output[:, len(ids) :], skip_special_tokens=True)


def _token_ids(policy: Path, tokenizer: Any) -> dict[str, Any]:
    """Where an answer ends, as engines see it: at the tokenizer's end token and at the model's own."""
    try:
        own = read_token_ids(policy).get("eos_token_id")
    except ModelError as error:
        raise BadInput(str(error)) from None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {"eos_token_id": sorted(ends) or None, "pad_token_id": pad}


def _mix(model: Any, experts: Sequence[Path], preference: Sequence[float]) -> None:
    """Give the model the experts' average weights."""
    from learner.soup import SoupSource

    source = SoupSource(experts, bucket_bytes=256 << 20)
    source.mix(preference)
    for bucket in source.buckets():
        model.load_state_dict({spec.name: tensor for spec, tensor in bucket}, strict=False)
