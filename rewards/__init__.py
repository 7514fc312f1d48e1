"""What a response is worth, and to whom.

- ``section``: the base of every room's sections, and values that several rooms know
- ``config``: objectives and preferences; ``judge_sections``: who scores
- ``simplex``: weights on the simplex: samplers, grids, quantisation
- ``preferences``: how weights are written into a prompt
- ``sampling``: how a policy is sampled, in training and afterwards
- ``tokens``: texts to token ids where template, text and tokenizer each may write special tokens
- ``scorers``: one objective's score for each response, from a classifier, a Python function or a server
- ``reading``: what a judge reads of a prompt and a response, in tokens
- ``ensemble``: several judges of one thing, whose disagreement counts
- ``judges``: from a recipe's section to a scorer, and what can be known of one before it loads
- ``functions``, ``readability``, ``sentiment``: ready-made scorers that are plain functions
- ``model_files``, ``model_config``: a model folder before it loads: what its files hold, what its config.json promises
- ``strict_json``: JSON that a user may have written
- ``vocabulary``: token ids that a model has no row for
- ``pretrained``: the one loader of tokenizers, configurations and models, for every room
- ``normalize``: scores brought to one scale, measured once and frozen
- ``environment``: what processes of every room need: models by name, their environment, seeds, what errors mean
- ``metrics``: what every figure of a run is called and means
- ``pareto``: hypervolume, mean inner product, dispersion and rank correlation of a front

Nothing here imports another room, Ray or vLLM; torch and transformers are imported only when something is loaded.
"""
