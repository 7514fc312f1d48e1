"""Models to start from: supervised fitting of policies, Bradley-Terry training of reward models.

config         what a fit needs to know
rows           JSONL rows, training and held-out
models         tokenizers and models, from a folder or new; adapters
trainer        `transformers.Trainer`, quiet and deterministic; what a fit came to
supervised     policies: cross-entropy on responses; responses of a fitted one, without an engine
bradley_terry  reward models: Bradley-Terry on pairs
"""
