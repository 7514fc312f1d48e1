"""A start that reads w, from any model that does not.

taught    policy for a recipe with its own prompts
teach     the stage itself
answers   what the model answers, by vLLM
"""
