"""Models to start from: supervised fitting of policies, Bradley-Terry training of reward models.

config   what a fit needs to know
rows     JSONL rows, training and held-out
models   tokenizers and models, from a folder or new
trainer  `transformers.Trainer`, quiet and deterministic
adapters low-rank adapters, merged into what is saved
supervised     policies: cross-entropy on responses
bradley_terry  reward models: Bradley-Terry on pairs
responses      of a policy, without an engine
report   what a fit came to
"""
