"""The one way from a model's name to tokenizer, configuration or weights: no code of its own is run, nobody is asked.

transformers would ask at the terminal whether to run what a folder calls its code, and fills weights that are missing
with random numbers; here both are a ModelError of one line.
"""

from typing import Any, Literal

from rewards.environment import describe, local_folder, model_source
from rewards.model_config import BUFFERS, max_positions
from rewards.model_files import ModelError, read_json, refuse_code, refuse_difference, require_weights
from rewards.vocabulary import check_length

ModelClass = Literal["AutoModelForCausalLM", "AutoModelForSequenceClassification"]
Attention = Literal["auto", "eager"]
Head = Literal["whole", "judge", "new"]
"""What must be in the files. `whole`: the model, nothing else; `judge`: it may stand beside other things; `new`: what
stands above the base model may be missing."""


def load_tokenizer(model: str, **options: Any) -> Any:
    """Of a folder or hub id. Raises ModelError."""
    _refuse_code(model)
    try:
        if _is_plain_fast_tokenizer(model):
            from transformers import PreTrainedTokenizerFast

            loader: Any = PreTrainedTokenizerFast  # what AutoTokenizer would find, but that imports torch
        else:
            from transformers import AutoTokenizer

            loader = AutoTokenizer
        tokenizer = loader.from_pretrained(model_source(model), trust_remote_code=False, **options)
    except Exception as error:  # the library raises many kinds; all mean that it cannot be had
        raise ModelError(f"no tokenizer could be loaded from {model!r}: {describe(error)}") from error
    check_length(tokenizer.model_max_length, repr(model))
    return tokenizer


def load_config(model: str) -> Any:
    """transformers' configuration of a folder or hub id. Raises ModelError."""
    _refuse_code(model)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_source(model), trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"no configuration could be loaded from {model!r}: {describe(error)}") from error


def load_model(kind: ModelClass, model: str, *, head: Head, attention: Attention = "auto", **options: Any) -> Any:
    """A model with all its weights, out of a folder or hub id.

    Args:
        attention: which of transformers' implementations.
        options: further arguments of transformers' `from_pretrained`; with `device_map="meta"` names and shapes are
            compared and no weight is read.

    Raises:
        ModelError: it cannot be loaded, or weights are missing, have another shape, or have no place in it.
    """
    _refuse_code(model)
    folder = local_folder(model)
    if folder is not None and folder.is_dir() and "gguf_file" not in options:
        require_weights(folder)
    import transformers

    if options.get("device_map") == "meta":
        transformers.utils.logging.disable_progress_bar()  # which would tell of weights being loaded
    try:
        loaded, info = getattr(transformers, kind).from_pretrained(
            model_source(model),
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
            **({} if attention == "auto" else {"attn_implementation": attention}),
            **options,
        )
    except Exception as error:  # as above
        raise ModelError(f"{model!r} cannot be loaded: {describe(error)}") from error
    base = f"{loaded.base_model_prefix}."
    modules = {name for name, _ in loaded.named_modules()}
    refuse_difference(
        repr(model),
        missing=[name for name in info["missing_keys"] if head != "new" or name.startswith(base)],
        misshapen={name: (stored, wanted) for name, stored, wanted in info["mismatched_keys"]},
        unexpected=[
            name
            for name in info["unexpected_keys"]
            if not name.endswith(BUFFERS)
            and (head == "whole" or name.startswith(base) or name.rpartition(".")[0] in modules)
        ],
    )
    return loaded


def positions_of(model: Any) -> int | None:
    """Most tokens that a loaded model tells apart; None: it sets no bound."""
    limits = [max_positions(model.config.to_dict())]
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:  # RoBERTa's count from behind the padding
            limits.append(module.num_embeddings - padding - 1)
    return min((limit for limit in limits if limit is not None), default=None)


def _refuse_code(model: str) -> None:
    folder = local_folder(model)
    if folder is not None:  # of a hub id transformers' own classes are taken, or it refuses
        refuse_code(folder)


def _is_plain_fast_tokenizer(model: str) -> bool:
    """Whether the generic fast class is the folder's own."""
    folder = local_folder(model)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return False
    try:
        config = read_json(folder / "tokenizer_config.json")
    except ModelError:
        return False
    return config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
