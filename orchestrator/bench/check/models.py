"""Models of given sizes with random weights: their speed is that of trained ones. torch and transformers on use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A Llama. Example: Size(layers=2, hidden=64, mlp=128, heads=2, kv_heads=1, head=32, vocabulary=512)"""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False

    @property
    def layer_parameters(self) -> int:
        """Of all layers' matrices; embeddings and norms left out."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary


SIZES = {
    "tiny": Size(layers=2, hidden=64, mlp=128, heads=2, kv_heads=1, head=32, vocabulary=512, tied=True),
    "135M": Size(layers=30, hidden=576, mlp=1536, heads=9, kv_heads=3, head=64, vocabulary=49_152, tied=True),
    "1.7B": Size(layers=28, hidden=2048, mlp=6144, heads=16, kv_heads=8, head=128, vocabulary=151_936, tied=True),
    "8B": Size(layers=36, hidden=4096, mlp=12_288, heads=32, kv_heads=8, head=128, vocabulary=151_936),
}
"""Those of SmolLM2-135M, Qwen3-1.7B and Qwen3-8B; `tiny` is for rehearsals."""


def make_model(size: Size, folder: Path, *, device: str) -> Path:
    """A folder that transformers and vLLM load: bfloat16 on a GPU, float32 on CPU; made where there is none."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from orchestrator.tasks.smoke import make_tokenizer

    if (folder / "tokenizer.json").is_file():
        return folder
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head,
        max_position_embeddings=4096,
        tie_word_embeddings=size.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    return folder
