"""The learner: examples in, policy versions out.

May import `rewards`, and of `actors` what both ends must do alike: `actors.processes` (with Ray) and `actors.tensors`
(hashes, merged adapters); never `orchestrator`.

config.py    the recipe's `learner` section, and the learning rate of a step
methods/     what is trained on: a method is one file
examples.py  what enters: a prompt's scored responses, and its share of an update
types.py     what leaves: step reports, weight manifests, the description of a checkpoint; errors
pairs.py     K scores of two responses -> the weight of each response as the winner
losses.py    the MI-EPO loss and the supervised one, pure functions
sequences.py ragged token ids -> padded micro-batches; examples -> their passes, and what a loss reads of them
policy.py    Hugging Face folder -> the module DeepSpeed trains (tokens in, log-probabilities of response tokens out,
             without a [B, T, V] block of logits), its frozen reference, and back to a folder
backend.py   what DeepSpeed is told: device, dtype, process group, configuration
engine.py    one DeepSpeed rank; works without Ray
weights.py   Hugging-Face-named parameters bucket by bucket, from any ZeRO stage: all of them, or the adapters
soup.py      the same of averaged policies
senders.py   how those buckets reach the rollout engines, through Ray's object store
nccl.py      the same between GPUs, by vLLM's NCCL broadcast
checkpoint.py weights and optimizer state on disk
worker.py    the Ray actor around one rank
ranks.py     calls to all ranks at once, with deadlines and errors that name the rank
group.py     all ranks as one learner
"""
