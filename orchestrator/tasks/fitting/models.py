"""Where a fit begins: a tokenizer and a model, from a folder or new, with adapters where it is too large to train."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from learner.config import LoraSection
from learner.policy import add_adapters as wrap_in_adapters
from learner.weights import ADAPTER, merged_weight
from orchestrator.errors import BadInput
from orchestrator.tasks.fitting.config import Architecture, ByteLevelBPE, C, FitConfig, PolicyFitConfig
from orchestrator.tasks.fitting.trainer import seeded
from rewards.model_files import ModelError
from rewards.pretrained import Head, ModelClass, load_model, load_tokenizer, positions_of
from rewards.vocabulary import first_without_row, without_row


def make_tokenizer(config: FitConfig, texts: Iterable[str]) -> Any:
    """The config's tokenizer; a byte-level BPE is trained on `texts`. It always has a padding token.

    Raises:
        BadInput: the folder or hub id holds no tokenizer, or one with neither padding nor end token.
    """
    if isinstance(config.tokenizer, ByteLevelBPE):
        return train_byte_level_bpe(config.tokenizer, texts)
    source = config.tokenizer or config.model
    if source is None:
        raise BadInput("tokenizer: is required with architecture (a folder, a hub id, or settings to train one)")
    try:
        tokenizer = load_tokenizer(source)
    except ModelError as error:
        raise BadInput(f"tokenizer: {error}") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BadInput(f"tokenizer: {source!r} has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_byte_level_bpe(settings: ByteLevelBPE, texts: Iterable[str]) -> Any:
    """A fast tokenizer; decoding gives back every text exactly."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=settings.vocab_size - len(settings.special_words),
            min_frequency=settings.min_frequency,
            special_tokens=[settings.pad_token, settings.eos_token],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.add_tokens([AddedToken(word, normalized=False) for word in settings.special_words])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=settings.pad_token,
        eos_token=settings.eos_token,
        clean_up_tokenization_spaces=False,
    )


def make_policy(config: PolicyFitConfig, tokenizer: Any) -> Any:
    """A causal language model of the config's dtype, from the folder or new."""
    from transformers import LlamaForCausalLM

    dtype = getattr(torch, config.dtype)
    if config.architecture is None:
        return _load("AutoModelForCausalLM", config, head="whole", dtype=dtype)
    with seeded(config.seed):
        return LlamaForCausalLM(llama_config(config.architecture, tokenizer)).to(dtype)


def make_classifier(config: FitConfig, tokenizer: Any) -> Any:
    """A sequence classifier with one label, read at the last token; its head is new unless the folder has one."""
    from transformers import LlamaForSequenceClassification

    with seeded(config.seed):
        if config.architecture is None:
            own = {"dtype": torch.float32, "num_labels": 1}
            model = _load("AutoModelForSequenceClassification", config, head="new", **own)
        else:
            model = LlamaForSequenceClassification(llama_config(config.architecture, tokenizer, num_labels=1))
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def within_positions(config: C, model: Any) -> C:
    """The config with rows no longer than the model has positions."""
    positions = positions_of(model)
    return config if positions is None else config.model_copy(update={"max_length": min(config.max_length, positions)})


def require_rows(model: Any, tokenizer: Any, inputs: Iterable[Sequence[int]]) -> None:
    """Raises BadInput: a token of the inputs, or the padding between them, has no row in the model's embedding."""
    rows = model.get_input_embeddings().num_embeddings
    for token_ids in itertools.chain([[tokenizer.pad_token_id]], inputs):
        beyond = first_without_row(token_ids, rows)
        if beyond is not None:
            raise BadInput(f"model: {without_row(tokenizer.convert_ids_to_tokens(beyond), beyond, rows)}")


def llama_config(architecture: Architecture, tokenizer: Any, **more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads or architecture.num_heads,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        rms_norm_eps=architecture.norm_eps,
        tie_word_embeddings=architecture.tie_embeddings,
        initializer_range=architecture.init_std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **more,
    )


@torch.no_grad()
def put_levels_on_a_line(
    embedding: torch.Tensor,
    token_ids: Sequence[int],
    *,
    center_std: float = 0.0,
    direction_std: float,
    noise_std: float,
    generator: torch.Generator,
) -> None:
    """Overwrite rows of an embedding [V, H]: the L levels, lowest first, lie evenly on one random line.

    A fit from random weights reads tokens that mean numbers far sooner when they start in order.

    e_i = c + noise_i + (2 i / (L - 1) - 1) v [H], with v ~ N(0, direction_std), noise_i ~ N(0, noise_std) and
    c ~ N(0, center_std), by which attention finds a level whatever its height.
    """
    width, last = embedding.shape[1], len(token_ids) - 1
    direction = torch.randn(width, generator=generator) * direction_std
    center = torch.randn(width, generator=generator) * center_std if center_std else torch.zeros(width)
    for index, token_id in enumerate(token_ids):
        noise = torch.randn(width, generator=generator) * noise_std
        embedding[token_id] = center + noise + (2 * index / last - 1) * direction


def add_adapters(model: Any, lora: LoraSection, config: PolicyFitConfig) -> Any:
    """The model in peft's wrapper, adapters drawn by the config's seed; nothing else of it is trained.

    Raises:
        BadInput: a target that the model lacks, that takes no adapter, or whose matrix two layers share.
    """
    try:
        _refuse_tied_targets(model, lora)
        with seeded(config.seed):
            # In float32 over a base of any dtype: the trainer keeps no float32 master copy of what it trains.
            adapted: Any = wrap_in_adapters(model, lora, float32=True)
    except ValueError as error:
        raise BadInput(f"lora.target_modules: {error} (model {config.model!r})") from None
    if config.optimization.gradient_checkpointing:
        # What enters the first checkpointed layer comes from frozen embeddings, and carries no gradient by itself.
        adapted.enable_input_require_grads()
    return adapted


def merge_adapters(adapted: Any) -> Any:
    """The model without wrapper, base + (alpha / rank) B A in its adapted layers, as a learner merges them."""
    with torch.no_grad():
        for module in adapted.modules():
            if ADAPTER in getattr(module, "lora_A", ()):
                module.base_layer.weight.copy_(merged_weight(module.base_layer.weight, module))
                module.lora_B[ADAPTER].weight.zero_()  # peft, which rounds otherwise, has nothing left to add
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


def _load(kind: ModelClass, config: FitConfig, *, head: Head, **more: Any) -> Any:
    assert config.model is not None
    try:
        return load_model(kind, config.model, head=head, attention=config.attention, **more)
    except ModelError as error:
        raise BadInput(f"model: {error}") from None
