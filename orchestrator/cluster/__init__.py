"""The Ray cluster and a run's actors on it.

connection  joined when there is one, started locally otherwise, checked against the recipe
placement   what a run's actors ask of a cluster, and whether it fits
crew        all actors of a run, started and stopped together
fleet       the rollout engines, lost and brought back
judging     the reward actors, the same
failures    what died, and how often
"""
