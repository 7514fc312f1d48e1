"""Models to start from: supervised fitting of policies, Bradley-Terry training of reward models.

config         what a fit needs to know
devices        the one GPU of a fit
models         tokenizers and models, from a folder or new; adapters
trainer        JSONL rows; `transformers.Trainer`, quiet and deterministic; what a fit came to
supervised     policies: cross-entropy on responses; responses of a fitted one, without an engine
bradley_terry  reward models: Bradley-Terry on pairs
refitting      reward models of a run, fitted further
"""
