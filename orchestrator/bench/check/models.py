"""Models of given sizes with random weights: their speed is that of trained ones. torch and transformers on use."""

from pathlib import Path
from typing import Any

from orchestrator.estimate.shapes import SHAPES, Shape

SIZES = {
    "tiny": Shape(
        architecture="llama",
        parameters=106_816,
        layers=2,
        hidden=64,
        intermediate=128,
        heads=2,
        kv_heads=1,
        head_dim=32,
        vocabulary=512,
    ),
    "135M": SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"],
    "1.7B": SHAPES["Qwen/Qwen3-1.7B"],
    "8B": SHAPES["Qwen/Qwen3-8B"],
}
"""`tiny` is for rehearsals."""


def make_model(
    shape: Shape, folder: Path, *, device: str, tokenizer: Any = None, labels: int | None = None, seed: int = 0
) -> Path:
    """A Llama of this shape that transformers and vLLM load: bfloat16 on a GPU, float32 on CPU; made where none is.

    Args:
        tokenizer: None: one that writes any text, by bytes.
        labels: of a sequence classifier; None: a language model.
        seed: of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from orchestrator.tasks.smoke import make_tokenizer

    if (folder / "tokenizer.json").is_file():
        return folder
    tokenizer = tokenizer or make_tokenizer()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.parameters < shape.layer_parameters + 2 * shape.head_parameters,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({} if labels is None else {"num_labels": labels}),
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = (LlamaForCausalLM if labels is None else LlamaForSequenceClassification)(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    return folder
