"""Public preference data prepared for steering: the inputs of the `hh-smollm2` recipe, or of your own fits and recipes.

prepare   pairs of transcripts (or PKU-SafeRLHF) -> shared prompts and answers; prompts and supervised rows from them
build     prompts, harmlessness reward model and starting policy from them
"""
