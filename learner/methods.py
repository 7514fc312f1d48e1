"""Method name -> which terms of the loss are on. One small class per method; the recipe names it.

Every method here draws two responses under w+ and labels the pair per objective (`learner.pairs.pair_weights`).
"""

from typing import Protocol

from learner.config import LearnerConfig


class Method(Protocol):
    """What the engine asks a method."""

    def beta_w(self, config: LearnerConfig) -> float:
        """Strength of the identifiability term; 0 turns it and its forward passes off."""
        ...


class MiEpo:
    """arXiv 2607.01392: L_YC + L_YW. The policy must follow w, and its answer must tell which w it followed.

    Assumes w- is drawn independently of w+; where they coincide, L_YW is log 2 and pushes y away from its own w.
    """

    def beta_w(self, config: LearnerConfig) -> float:
        return config.beta_w


class MoOdpoPerObjective:
    """L_YC alone: per-objective MO-ODPO in the form of the MI-EPO paper (its eq. 5), i.e. MI-EPO with beta_w = 0.

    Not the scalarized MO-ODPO of arXiv 2503.00295, which picks one winner by the weighted score.
    """

    def beta_w(self, config: LearnerConfig) -> float:
        return 0.0


METHODS: dict[str, Method] = {"mi-epo": MiEpo(), "mo-odpo-per-objective": MoOdpoPerObjective()}
