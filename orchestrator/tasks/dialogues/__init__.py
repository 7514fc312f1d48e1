"""Public preference data prepared for steering: the inputs of the `hh-small` recipe, or of your own fits and recipes.

prepare   pairs of transcripts (or PKU-SafeRLHF) -> shared prompts and answers; prompts and supervised rows from them
build     prompts, tokenizer, starting policy and harmlessness reward model from them
"""
