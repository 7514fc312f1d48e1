"""Public preference data prepared for steering: the inputs of the `hh-small` recipe, or of your own fits and recipes.

transcript   a pair of transcripts -> shared prompt, chosen and rejected answer
build        prompts, tokenizer, starting policy and harmlessness reward model from them
prepare      prompts and supervised rows from them, or from PKU-SafeRLHF
"""
