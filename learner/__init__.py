"""The learner: preference pairs in, policy versions out.

May import `rewards`, and `actors.processes` for what needs Ray; nothing else of `actors`, and never `orchestrator`.

config.py    the recipe's `learner` section
types.py     what crosses this room's door: pairs and batches in, step reports and weight manifests out
pairs.py     K scores of two responses -> the weight of each response as the winner
losses.py    the MI-EPO loss, a pure function
methods.py   method name -> which terms of the loss are on
schedule.py  the learning rate of a step, a pure function
sequences.py ragged token ids -> padded micro-batches
logprobs.py  log-probabilities of response tokens without a [B, T, V] block of logits
policy.py    Hugging Face folder -> the module DeepSpeed trains, its frozen reference, and back to a folder
backend.py   what DeepSpeed is told: device, dtype, process group, configuration
engine.py    one DeepSpeed rank; works without Ray
weights.py   Hugging-Face-named parameters bucket by bucket, from any ZeRO stage: all of them, or the adapters
soup.py      the same of averaged policies
senders.py   how those buckets reach the rollout engines, through Ray's object store
nccl.py      the same between GPUs, by vLLM's NCCL broadcast
checkpoint.py, checkpoint_meta.py  weights and optimizer state on disk
ranks.py     calls to all ranks at once, with deadlines and errors that name the rank
worker.py    the Ray actor around one rank
group.py     all ranks as one learner
"""
