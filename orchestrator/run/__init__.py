"""A run, from recipe to trained policy.

train           a training run: wire the actors, evaluate, train, evaluate, export
record          around it: claim the folder, check what can be known, note how it ended
loop            the method, on one screen
stages          what the loop drives, as protocols
wiring          the run's actors joined into the stages that the loop drives
stopping        signals: when a run ends, and how soon

The stages:

batching        prompts -> generation requests; scored responses -> the method's examples
sampling        rollout actors and reward actors as one streaming stage
evaluate        the preference grid and the normaliser
refresh         judges fitted further to what annotators say of the policy's answers
probe           engines and learner on the same tokens, and what over-optimisation does to these
budget          the KL budget

What a run keeps and tells:

rundir          the run directory and its checkpoints
resuming        whether a run can go on under a changed recipe
in_flight       what a checkpoint holds of batches
telemetry       metrics, samples, one line per step
monitoring      Ray's metrics, wandb
health          what goes wrong while nothing dies

Beside training:

soups           several runs merged into a policy for each w; soup_sampler, merges: how these are sampled and chosen
evaluation_run  `mi-epo evaluate`
steering        how a saved policy is steered; `mi-epo generate`
"""
