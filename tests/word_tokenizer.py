"""A tokenizer small enough to read: one id per word, for tests of pure logic."""


class WordTokenizer:
    """Words to ids in order of first use; speaks the part of the transformers tokenizer that the renderer calls."""

    def __init__(self):
        self.words: dict[str, int] = {}

    def __call__(self, text, **kwargs):
        return {"input_ids": [self.words.setdefault(word, len(self.words)) for word in text.split()]}
