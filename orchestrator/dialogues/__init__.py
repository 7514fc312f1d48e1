"""Preference dialogues (the HH-RLHF format) prepared for steering: the `hh-small` recipe's inputs.

transcript   a pair of transcripts -> shared prompt, chosen and rejected answer
build        prompts, tokenizer, starting policy and harmlessness reward model from them
"""
