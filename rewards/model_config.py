"""What a model's config.json promises: positions, vocabulary, and for the architectures known here every weight."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewards.model_files import (
    INDEX,
    WHOLE,
    ModelError,
    TensorHeader,
    read_json,
    refuse_code,
    refuse_difference,
    require_weights,
    same_values,
)

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "seq_len")
"""Under the names that vLLM looks for as well."""
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rotary embedding whose positions in config.json are those after scaling (vLLM reads them so too)."""
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "position_ids")
"""Last parts of names that old checkpoints keep and no model needs."""
REAL = ("F64", "F32", "F16", "BF16")
"""As safetensors writes the dtypes of plain weights."""
PLAIN: Mapping[str, tuple[object, ...]] = {
    "dtype": (None, "float32", "float16", "bfloat16"),
    "torch_dtype": (None, "float32", "float16", "bfloat16"),
    "hidden_act": (None, "silu"),
    "activation_function": (None, "gelu_new"),
}
"""What every loader takes besides sizes; with other values it may refuse."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder. Raises ModelError: there is none, it is broken, or code is named beside it."""
    config = read_json(folder / "config.json")
    refuse_code(folder)
    if not isinstance(config.get("architectures") or [], list):
        raise ModelError(
            f"{folder / 'config.json'}: architectures must be a list of names, got {config['architectures']!r:.80}"
        )
    return config


def max_positions(config: Config) -> int | None:
    """Most tokens that the model tells apart, by its rotary scaling too; None: it says nothing.

    Args:
        config: config.json, or `to_dict()` of a configuration (then defaults count as well).

    Raises:
        ModelError: the scaling is by no finite number.
    """
    text = _text(config)
    said = [text[key] for key in POSITIONS if isinstance(text.get(key), int)]
    limit = text["model_max_length"] if isinstance(text.get("model_max_length"), int) else min(said, default=None)
    if limit is None or "gemma3" in str(text.get("model_type")):
        return limit
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))] if isinstance(rope, dict) else []
    factors = [
        kind["factor"]
        for kind in kinds
        if isinstance(kind.get("factor"), int | float) and kind.get("rope_type", kind.get("type")) not in SCALED_ALREADY
    ]
    try:
        return int(limit * (factors[-1] if factors else 1))
    except (OverflowError, ValueError):  # of infinity, of NaN
        raise ModelError(f"config.json: {limit} positions cannot be scaled by a factor of {factors[-1]}") from None


def vocabulary_size(config: Config) -> int | None:
    """Rows of the embedding: token ids are below this; None: config.json does not say."""
    size = _text(config).get("vocab_size")
    return size if isinstance(size, int) else None


def check_weights(folder: Path, config: Config, *, labels: int | None = None, score: str = "score") -> bool:
    """Compare the headers of the weight files with what config.json promises, without loading anything.

    Returns whether that is all a loader would compare; if not, transformers must be asked to build the model.

    Args:
        labels: of a sequence classifier, which may stand beside other things. None: a causal language model, and
            nothing else.
        score: the files' name for the classifier's last layer.

    Raises:
        ModelError: no weights, files that are none, weights that are missing, of another shape or kind, or have no
            place, or a number in config.json that is no size.
    """
    max_positions(config)  # refuses a scaling that is none
    headers = require_weights(folder)
    whole = labels is None
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != WHOLE)
    if whole and others and not (folder / INDEX).is_file():
        raise ModelError(  # engines read every file where no index tells which
            f"{folder}: must hold {WHOLE} alone or an index of its files ({INDEX}), got {others[0]} as well"
        )
    quantised = config.get("quantization_config")
    if quantised and whole:
        raise ModelError(f"{folder}: must have plain weights to train, got quantization_config {quantised!r:.100}")
    if not headers:
        return True  # torch's own files tell nothing before they are loaded
    if quantised:
        return False
    _refuse_numbers_of_another_kind(folder, headers)
    try:
        # One more than there are, of which one is missing: how many layers there should be is not believed before.
        expected = dict(itertools.islice(_expected(config), len(headers) + 1))
    except KeyError:  # transformers' own default counts
        return False
    if not expected:
        return False
    embedding = next(iter(expected))
    rows, hidden = expected[embedding]
    tied = whole and config.get("tie_word_embeddings", config["model_type"] == "gpt2")
    if labels is not None:
        expected[f"{score}.weight"] = (labels, hidden)
    elif not tied:
        expected["lm_head.weight"] = (rows, hidden)
    found = _below_prefix(headers)
    own = {name for name in found if whole or name.startswith(("layers.", "h.", f"{score}."))}
    refuse_difference(
        folder,
        missing=expected.keys() - found.keys(),
        misshapen={
            name: (found[name].shape, shape)
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        },
        unexpected={name for name in own - expected.keys() - {"lm_head.weight"} if not name.endswith(BUFFERS)},
    )
    head = found.get("lm_head.weight")
    if tied and head is not None and not same_values(head, found[embedding]):
        raise ModelError(  # transformers would take both matrices, vLLM the embedding alone
            f"{folder}: tie_word_embeddings says that lm_head.weight is {embedding}, the files hold another one"
        )
    return _is_plain(config)


def _is_plain(config: Config) -> bool:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return (
        all(config.get(key) in values for key, values in PLAIN.items())
        and isinstance(rope, dict)
        and rope.get("rope_type", rope.get("type", "default")) == "default"
    )


def _refuse_numbers_of_another_kind(folder: Path, headers: Mapping[str, TensorHeader]) -> None:
    for name, header in headers.items():
        if name.endswith((".weight", ".bias")) and not name.endswith(BUFFERS) and header.dtype not in REAL:
            raise ModelError(f"{folder}: {name} must be of real numbers ({', '.join(REAL)}), got {header.dtype}")


def _text(config: Config) -> Config:
    """The part of the language model, where a configuration has several."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _below_prefix(headers: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    prefixes = ("model.", "transformer.")
    named = {name: next((each for each in prefixes if name.startswith(each)), "") for name in headers}
    return {name.removeprefix(prefix): headers[name] for name, prefix in named.items()}


def _size(config: Config, key: str, default: int | None = None) -> int:
    """Raises KeyError: not said, and there is no default; ModelError: no size."""
    value = config[key] if default is None else config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise ModelError(f"config.json: {key} must be a whole number of at least 1, got {value!r:.80}")
    return value


def _expected(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Weights below the head, names without the base model's prefix, the embedding first; none: not known here.

    Raises:
        KeyError: a size is not said.
        ModelError: a size is none.
    """
    kind = config.get("model_type")
    if kind == "gpt2":
        yield from _gpt2(config)
    elif kind in ("llama", "mistral", "qwen2", "qwen3"):
        yield from _llama(config, str(kind))


def _llama(config: Config, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, wide = (_size(config, key) for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    key_heads = _size(config, "num_key_value_heads", heads)
    size = _size(config, "head_dim", 128 if kind == "qwen3" else hidden // heads)
    query, key = heads * size, key_heads * size
    linears = {
        **{"self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden)},
        **{"self_attn.o_proj": (hidden, query), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden)},
        **{"mlp.down_proj": (hidden, wide)},
    }
    attention_bias = kind in ("llama", "qwen3") and config.get("attention_bias")
    biased = [name for name in linears if name.startswith("self_attn.") and attention_bias]
    biased += [name for name in linears if name.startswith("mlp.") and kind == "llama" and config.get("mlp_bias")]
    biased += [f"self_attn.{name}_proj" for name in "qkv" if kind == "qwen2"]
    yield "embed_tokens.weight", (_size(config, "vocab_size"), hidden)
    yield "norm.weight", (hidden,)
    for layer in range(_size(config, "num_hidden_layers")):
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"layers.{layer}.{name}.weight", (hidden,)
        for name in ("q_norm", "k_norm") if kind == "qwen3" else ():
            yield f"layers.{layer}.self_attn.{name}.weight", (size,)
        for name, shape in linears.items():
            yield f"layers.{layer}.{name}.weight", shape
        for name in biased:
            yield f"layers.{layer}.{name}.bias", linears[name][:1]


def _gpt2(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = _size(config, "n_embd")
    wide = _size(config, "n_inner", 4 * hidden)
    yield "wte.weight", (_size(config, "vocab_size"), hidden)
    yield "wpe.weight", (_size(config, "n_positions"), hidden)
    yield "ln_f.weight", (hidden,)
    yield "ln_f.bias", (hidden,)
    linears = {
        **{"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)},
        **{"mlp.c_fc": (hidden, wide), "mlp.c_proj": (wide, hidden)},
    }
    for layer in range(_size(config, "n_layer")):
        for name in ("ln_1", "ln_2"):
            yield f"h.{layer}.{name}.weight", (hidden,)
            yield f"h.{layer}.{name}.bias", (hidden,)
        for name, shape in linears.items():
            yield f"h.{layer}.{name}.weight", shape
            yield f"h.{layer}.{name}.bias", shape[1:]
