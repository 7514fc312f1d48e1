"""Talk to a steered policy: plain transformers, the same renderer as training, no Ray and no vLLM."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from orchestrator.conditioning import load_conditioning
from orchestrator.errors import BadInput
from orchestrator.plan import load_tokenizer
from rewards.preferences import PreferenceError, parse_preference


def find_policy(path: Path) -> Path:
    """The policy folder of a run directory, or the folder itself."""
    return path / "policy" if (path / "policy" / "config.json").is_file() else path


def read_preference(items: Sequence[str], objectives: Sequence[str]) -> np.ndarray:
    """`NAME=W` items -> [K] in objective order. Raises BadInput."""
    weights: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
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
    """One answer per prompt and response, sampled at the temperature the policy was trained at."""
    policy = find_policy(policy)
    conditioning = load_conditioning(policy)
    preference = read_preference(preference_items, conditioning.objectives).tolist()

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = load_tokenizer(str(policy.resolve()))
    renderer = conditioning.renderer(tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(policy, dtype="auto").to(device).eval()
    torch.manual_seed(seed)
    limit = getattr(model.config, "max_position_embeddings", None)
    for prompt in prompts:
        ids = renderer.token_ids(prompt, preference)
        if limit is not None and len(ids) + conditioning.max_new_tokens > limit:
            raise BadInput(
                f"prompt: must leave {conditioning.max_new_tokens} of the policy's {limit} tokens for the answer, "
                f"got {len(ids)}"
            )
        inputs = torch.tensor([ids] * num_responses, device=device)
        with torch.no_grad():
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                temperature=conditioning.temperature,
                top_k=0,
                max_new_tokens=conditioning.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        yield from tokenizer.batch_decode(output[:, len(ids) :], skip_special_tokens=True)
