"""Everything that knows everybody: it wires the rooms and drives them; nothing imports it.

cli             the `mi-epo` command
config          the recipe: all sections composed, YAML, overrides
plan            what can be checked and told before a start
run             a training run from recipe to report
loop            the method, on one screen
batching        prompts -> generation requests; scored responses -> preference pairs
sampling        rollout actors and reward actors as one streaming stage
evaluate        the preference grid and the normaliser
evaluation_run  `mi-epo evaluate`
generate        `mi-epo generate`
conditioning    how a saved policy is steered
telemetry       metrics, samples, progress, wandb
rundir          the run directory and its checkpoints
report, plots   figures, summary and the HTML report
cluster         the Ray cluster and what a recipe asks of it
data            prompts from files, batches from prompts
fitting/        supervised fitting of policies, Bradley-Terry training of reward models
miniature/      the self-contained task
dialogues       the same preparation for real preference dialogues

Arrows: orchestrator -> actors, learner, rewards; actors -> rewards; learner -> rewards; never sideways, never up.
"""
