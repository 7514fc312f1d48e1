"""The word-level tokenizer of the miniature: one token per space-separated word, nothing added."""

from typing import TYPE_CHECKING

from orchestrator.tasks.miniature import grammar, spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A fast tokenizer that `AutoTokenizer` and vLLM load; decoding gives the words joined by single spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(grammar.vocabulary())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=spec.UNK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=spec.PAD,
        eos_token=spec.EOS,
        unk_token=spec.UNK,
        padding_side="right",
        model_max_length=spec.MAX_MODEL_LEN,
        clean_up_tokenization_spaces=False,  # would join "wire ." into "wire."
    )
