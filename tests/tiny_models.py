"""Tiny random Hugging Face policy folders for tests, made on the fly in well under a second."""

from pathlib import Path

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>", "Human:", "Assistant:")


def make_tiny_policy(path: str | Path, *, vocab: int = 100, tie: bool = True, seed: int = 0) -> Path:
    """Write a random Llama (hidden 64, 2 layers, 2 heads of 32, feed-forward 192) and its word-level tokenizer.

    Words are `t5 .. t<vocab - 1>`, the digits and weights of a preference text included as they are (`0.0 .. 1.0`,
    `<a>`, `<b>`), so any text splits on spaces. Loads with plain transformers and plain vLLM. Returns `path`.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = Path(path)
    words = [*SPECIAL_TOKENS, "<a>", "<b>", *(f"{tenth / 10:.1f}" for tenth in range(11))]
    words += [f"t{index}" for index in range(len(words), vocab)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128
    )
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tie,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    random_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(random_state)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, do_sample=True)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


def make_tiny_classifier(path: str | Path, *, vocab: int = 100, seed: int = 0) -> Path:
    """Write a random one-label classifier of the same shape and words as `make_tiny_policy`. Returns `path`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    path = make_tiny_policy(path, vocab=vocab, seed=seed)
    config = LlamaConfig.from_pretrained(path, num_labels=1, architectures=None)
    random_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config)
    torch.random.set_rng_state(random_state)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
