"""Everything that knows everybody: it wires the rooms and drives them; nothing imports it.

A run, from the command to the report:

cli, recipes     the `mi-epo` command; recipe files, overrides
config           the recipe: all sections composed, and the rules between them
plan, placement  what can be checked and told before a start; what the actors ask of a cluster
run, loop        a training run from recipe to report; the method, on one screen
ric, soups       two methods that run otherwise
smoke            any recipe on CPU with tiny models
evaluation_run   `mi-epo evaluate`
generate         `mi-epo generate`

Its stages:

data             prompts from files, batches from prompts
batching         prompts -> generation requests; scored responses -> preference pairs
sampling         rollout actors and reward actors as one streaming stage
evaluate         the preference grid and the normaliser
conditioning     how a saved policy is steered

What keeps it going:

cluster, contact the Ray cluster it joins or starts
crew             all its actors, started and stopped together
fleet, judging   the engines and the reward models, lost and brought back
failures, health what died; what goes wrong while nothing dies
stopping         signals
rundir           the run directory and its checkpoints
in_flight, locks what a checkpoint holds of batches; one process at a time
errors           bad input, a failed run, a lost component

What it tells:

telemetry        metrics, samples, one line per step
monitoring       Ray's metrics
wandb_log        wandb
summary, report, figures/  numbers, page, plots

And what is built before or around runs:

assets           folders built once
fitting/         supervised fitting of policies, Bradley-Terry training of reward models
miniature/       the self-contained task
dialogues/       the same preparation for real preference dialogues
compare/         methods on identical work

Arrows: orchestrator -> actors, learner, rewards; actors -> rewards; learner -> rewards; never sideways, never up.
"""
