"""The shape of a model: from its folder, or from the table of hub ids that the recipes name."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.sections import SMOLLM2
from rewards.model_files import known_folder, read_json, tensor_headers

if TYPE_CHECKING:
    from orchestrator.config import Recipe

SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A transformer in the terms of its configuration.

    Example: Shape(architecture="qwen3", parameters=596_049_920, layers=28, hidden=1024, intermediate=3072, heads=16,
        kv_heads=8, head_dim=128, vocabulary=151_936)
    """

    architecture: str
    """What transformers calls it."""
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear modules, by Llama's names for them."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Of all layers' linear modules; embeddings and norms left out."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def head_parameters(self) -> int:
        """Of the matrix from the last hidden state to the vocabulary's logits."""
        return self.hidden * self.vocabulary


def _shape(architecture: str, parameters: int, sizes: tuple[int, int, int, int, int, int, int]) -> Shape:
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary = sizes
    return Shape(
        architecture=architecture,
        parameters=parameters,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
    )


_GPT2_LARGE = _shape("gpt2", 774_031_360, (36, 1280, 5120, 20, 20, 64, 50_257))
_BEAVER = _shape("llama", 6_607_351_808, (32, 4096, 11_008, 32, 32, 128, 32_001))
SHAPES = {
    SMOLLM2_ID: _shape("llama", 134_515_008, (30, 576, 1536, 9, 3, 64, 49_152)),
    "PKU-Alignment/alpaca-7b-reproduced": _shape("llama", 6_738_423_808, (32, 4096, 11_008, 32, 32, 128, 32_001)),
    "PKU-Alignment/beaver-7b-v1.0-cost": _BEAVER,
    "PKU-Alignment/beaver-7b-v1.0-reward": _BEAVER,
    "Qwen/Qwen3-0.6B": _shape("qwen3", 596_049_920, (28, 1024, 3072, 16, 8, 128, 151_936)),
    "Qwen/Qwen3-1.7B": _shape("qwen3", 1_720_574_976, (28, 2048, 6144, 16, 8, 128, 151_936)),
    "Qwen/Qwen3-8B": _shape("qwen3", 8_190_735_360, (36, 4096, 12_288, 32, 8, 128, 151_936)),
    "Ray2333/gpt2-large-harmless-reward_model": _GPT2_LARGE,
    "Ray2333/gpt2-large-helpful-reward_model": _GPT2_LARGE,
    "mohameddhiab/humor-no-humor": _shape("distilbert", 66_955_010, (6, 768, 3072, 12, 12, 64, 30_522)),
}
"""Hub id -> shape, of the models that deploy/recipes and deploy/gpu/check.sh name: sizes of the published
configurations, and the parameters that follow from them (a judge's single output instead of an LM head)."""


def model_shape(model: str) -> Shape | None:
    """Of a folder, a hub id that has been downloaded, or one of `SHAPES`; None when it cannot be known here."""
    folder = known_folder(model)
    if folder is None:
        return SHAPES.get(model)
    try:
        parameters, config = count_parameters(folder), read_json(folder / "config.json")
        return None if parameters is None else _from_config(config, parameters)
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return None


def policy_shape(recipe: "Recipe") -> Shape | None:
    """Of the recipe's policy; before its assets are built, of the model that it will be made from."""
    assets, shape = recipe.assets, model_shape(recipe.policy.model)
    if shape is not None or assets is None or not recipe.is_unbuilt:
        return shape
    base = SMOLLM2 if assets.build in ("smollm2", "dialogues") else assets.model
    return None if base is None else model_shape(SMOLLM2_ID if base == SMOLLM2 else base)


def count_parameters(folder: Path) -> int | None:
    """Parameters of a safetensors folder, from the file headers alone; None without such files. Raises ModelError."""
    return sum(math.prod(header.shape) for header in tensor_headers(folder).values()) or None


def adapter_parameters(shape: Shape, rank: int, targets: str | tuple[str, ...]) -> int:
    """Parameters of LoRA matrices of this rank in every layer; `targets` as in the recipe's `learner.lora`."""
    return shape.layers * sum(
        rank * (inputs + outputs)
        for name, (inputs, outputs) in shape.linears.items()
        if targets == "all-linear" or name in targets
    )


def _from_config(config: dict[str, object], parameters: int) -> Shape:
    """Raises KeyError for a configuration that names its sizes in a way of its own."""

    def sizes(*names: str) -> Iterator[int]:
        return (int(str(config[name])) for name in names if config.get(name) is not None)

    def size(*names: str, default: int | None = None) -> int:
        found = next(sizes(*names), default)
        if found is None:
            raise KeyError(names[0])
        return found

    hidden, heads = size("hidden_size", "n_embd", "dim"), size("num_attention_heads", "n_head", "n_heads")
    return Shape(
        architecture=str(config["model_type"]),
        parameters=parameters,
        layers=size("num_hidden_layers", "n_layer", "n_layers"),
        hidden=hidden,
        intermediate=size("intermediate_size", "n_inner", "hidden_dim", default=4 * hidden),
        heads=heads,
        kv_heads=size("num_key_value_heads", default=heads),
        head_dim=size("head_dim", default=hidden // heads),
        vocabulary=size("vocab_size"),
    )
