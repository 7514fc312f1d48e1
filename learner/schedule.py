"""The learning rate of a step: a pure function, so that a resumed run needs no scheduler state."""

import math

from learner.config import LearnerConfig


def learning_rate(config: LearnerConfig, *, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of a run of `total_steps`.

    Step s of W warm-up steps gets (s + 1) / W of the full rate. Then the rate goes from full to
    `final_learning_rate_ratio` of it along a cosine or a line, which it would reach at step `total_steps`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    falling = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}[config.schedule]
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1.0 - floor) * falling)
