"""MI-EPO (arXiv 2607.01392): L_YC + L_YW. The policy must follow w, and its answer must tell which w it followed.

Assumes w- is drawn independently of w+; where they coincide, L_YW is log 2 and pushes y away from its own w.
"""

from typing import Literal

from pydantic import Field

from learner.methods.mo_odpo import MoOdpo, MoOdpoPerObjective, PairMethod, PairSection, PerObjectiveSection


class InformationSection(PairSection):
    """Settings of the information term L_YW."""

    beta_w: float = Field(default=0.01, ge=0)
    """Strength of the KL anchor in L_YW (the paper's); 0 turns the term and its forward passes off."""
    stop_gradient: bool = True
    """The paper holds lr(y|w+) fixed in L_YW. False: the term also raises it."""


class _WithInformation(PairMethod):
    config: InformationSection

    @property
    def beta_w(self) -> float:
        return self.config.beta_w

    @property
    def stop_gradient(self) -> bool:
        return self.config.stop_gradient


class MiEpo(_WithInformation, MoOdpoPerObjective):
    """As published: one winner for each objective. With beta_w = 0 it is `mo-odpo-per-objective`."""

    class Config(InformationSection, PerObjectiveSection):
        type: Literal["mi-epo"] = "mi-epo"

    config: Config


class MiEpoScalarized(_WithInformation, MoOdpo):
    """The winner by w . s, and the information term beside it. With beta_w = 0 it is `mo-odpo`."""

    class Config(InformationSection):
        type: Literal["mi-epo-scalarized"] = "mi-epo-scalarized"
