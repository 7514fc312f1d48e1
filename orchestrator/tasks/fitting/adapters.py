"""Low-rank adapters for a policy too large to train whole: added, trained over the frozen base, merged into it."""

from typing import Any

from learner.config import LoraSection
from learner.policy import add_adapters
from orchestrator.errors import BadInput
from orchestrator.tasks.fitting.config import PolicyFitConfig
from orchestrator.tasks.fitting.trainer import seeded


def add(model: Any, lora: LoraSection, config: PolicyFitConfig) -> Any:
    """The model in peft's wrapper, adapters drawn by the config's seed; nothing else of it is trained.

    Raises:
        BadInput: a target that the model lacks, that takes no adapter, or whose matrix two layers share.
    """
    try:
        _refuse_tied_targets(model, lora)
        with seeded(config.seed):
            # In float32 over a base of any dtype: the trainer keeps no float32 master copy of what it trains.
            adapted: Any = add_adapters(model, lora, float32=True)
    except ValueError as error:
        raise BadInput(f"lora.target_modules: {error} (model {config.model!r})") from None
    if config.optimization.gradient_checkpointing:
        # What enters the first checkpointed layer comes from frozen embeddings, and carries no gradient by itself.
        adapted.enable_input_require_grads()
    return adapted


def merge(adapted: Any) -> Any:
    """The model without wrapper, base + (alpha / rank) B A in its adapted layers, each rounded to its dtype once."""
    model = adapted.merge_and_unload()
    model.disable_input_require_grads()
    return model.requires_grad_(True)


def _refuse_tied_targets(model: Any, lora: LoraSection) -> None:
    """Embedding and head that share a matrix would need two different merged ones."""
    tied = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(lora.target_modules, str) or tied[0].weight is not tied[1].weight:
        return
    for name, module in model.named_modules():
        if module in tied and any(f".{name}".endswith(f".{target}") for target in lora.target_modules):
            raise ValueError(f"{name!r} shares its matrix with another layer")
