"""Everything that knows everybody: it wires the rooms and drives them; nothing imports it.

cli       the `mi-epo` command
bench/    methods on identical work; report, summary, figures
run/      a run from recipe to trained policy: the loop, its stages, what it records
tasks/    what is built before a run
plan      what can be checked and told before a start
cluster/  the Ray cluster and a run's actors on it, lost and brought back
estimate/ what a run will ask of its GPUs: memory and time
recipes   recipe files and overrides
config    the recipe: all sections composed, and the rules between them
sections  those of this room
cards     GPUs by their names, and those of this machine
data      prompts from files, batches from prompts
files     JSON lines, whole texts, locks; aligned cells
options   what options of the command line may be
console   what a person sees: lines and bars; progress, pace: how far a stage is
errors    bad input, a failed run, a lost component

Inside, each imports only what stands below it in this list; outside, actors, learner and rewards.
"""
