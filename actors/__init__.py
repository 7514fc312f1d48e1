"""Ray actors that sample and score: one vLLM engine or one reward judge per process.

    config.py    the recipe's ``rollout`` section
    types.py     what enters and leaves the engines, and the errors they raise
    rollout.py   RolloutActor (a vLLM engine behind a door) and ``start_rollouts``
    engine.py    how that engine is built
    weights.py   the engine's end of the weight broadcast
    adapters.py  low-rank adapters merged into the engine's own base
    metrics.py   what the actors tell Ray of themselves
    reward.py    RewardActor (a scorer behind a door) and ``start_rewards``
    processes.py actors as processes on a cluster: reserved, started, found dead, ended; the learner's as well

May import ``rewards``; never ``learner`` or ``orchestrator``. ``config`` and ``types`` import no torch, Ray or vLLM.
"""
