"""The training methods, a file for each (or for a family of them), and the one list of their names.

method          what a method is: records, hooks, defaults
mo_odpo         online DPO under w: mo-odpo, mo-odpo-per-objective; what all methods on pairs share
mi_epo          mi-epo, mi-epo-scalarized
reward_consistency  only pairs on which all objectives agree
modpo           the other objectives as a margin of one objective's pairs
cpo             pairs by the distance from asked levels
max_min         every update for the objective that is worst off
ranked          all responses by their order: lipo-lambda, listwise
tchebycheff     one winner, by what an asked objective lacks most
raco, mgda, gradient_weights  gradients of the objectives combined: clipped CAGrad, the shortest mixture, by influence
grpo            group-relative policy gradient
rloo            policy gradient with other baselines: rloo, reinforce
pama            policy gradient by the least served objective
f_dpg           towards a target distribution by an f-divergence
ric             Rewards-in-Context
imitation       the best of one's own responses: dpa, uc-moa
rewarded_soups  one expert for each objective, averaged for each w
searched_soups  the same by coefficients that are searched: on a grid, or by a quadratic model (map-merging)
"""

from importlib import import_module
from typing import Any

from learner.methods.method import Combines, Merger, Method, MethodSection, Tried, Work

__all__ = ["METHODS", "Combines", "Merger", "Method", "MethodSection", "Tried", "Work", "adopt", "make_method"]

_PLACES = {
    "mi-epo": "mi_epo.MiEpo",
    "mi-epo-scalarized": "mi_epo.MiEpoScalarized",
    "mo-odpo": "mo_odpo.MoOdpo",
    "mo-odpo-per-objective": "mo_odpo.MoOdpoPerObjective",
    "reward-consistency": "reward_consistency.RewardConsistency",
    "modpo": "modpo.Modpo",
    "cpo": "cpo.Cpo",
    "max-min": "max_min.MaxMin",
    "tchebycheff": "tchebycheff.Tchebycheff",
    "lipo-lambda": "ranked.LipoLambda",
    "listwise": "ranked.Listwise",
    "raco": "raco.Raco",
    "mgda": "mgda.Mgda",
    "gradient-weights": "gradient_weights.GradientWeights",
    "grpo": "grpo.Grpo",
    "rloo": "rloo.Rloo",
    "reinforce": "rloo.Reinforce",
    "pama": "pama.Pama",
    "f-dpg": "f_dpg.FDpg",
    "rewarded-soups": "rewarded_soups.RewardedSoups",
    "searched-soups": "searched_soups.SearchedSoups",
    "map-merging": "searched_soups.MapMerging",
    "ric": "ric.Ric",
    "dpa": "imitation.Dpa",
    "uc-moa": "imitation.UcMoa",
}


def _load(place: str) -> type[Method]:
    module, _, name = place.partition(".")
    found: type[Method] = getattr(import_module(f"learner.methods.{module}"), name)
    return found


METHODS = {name: _load(place) for name, place in _PLACES.items()}


def make_method(config: MethodSection) -> Method[Any]:
    """The method that a recipe's `method` section asks for."""
    return METHODS[config.type](config)


def adopt(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The section of another method with what it shares of these settings: keys of one name that take the same values.

    Args:
        name: of `METHODS`.
        settings: of a method's section; all that is known counts where its `type` is none of ours.
    """
    known, own = METHODS[name].Config.model_fields, settings.get("type")
    given = METHODS[own].Config.model_fields if own in METHODS else known
    shared = {key for key in given.keys() & known.keys() if given[key].annotation == known[key].annotation}
    return {**{key: value for key, value in settings.items() if key in shared}, "type": name}
