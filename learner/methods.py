"""Method name -> how a pair is labelled and which terms of the loss are on. The recipe names one.

Every method here draws two responses or more under w+ and is steered at evaluation by w in the prompt. The first four
differ in two switches, so they share one code path and their comparison isolates what they differ in:

    | method                  | winner of a pair          | information term |
    | `mi-epo`                | one per objective         | on               |
    | `mo-odpo-per-objective` | one per objective         | off              |
    | `mi-epo-scalarized`     | one, by the weighted score| on               |
    | `mo-odpo`               | one, by the weighted score| off              |
    | `rewarded-soups`        | one-hot w: its objective's| off              |
    | `ric`                   | (imitates both)           | off              |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from learner.config import LearnerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from learner.pairs import ChosenPairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Example: Method(pair_rule="per_objective", information_term=True)"""

    pair_rule: Literal["per_objective", "scalarized"]
    information_term: bool
    supervised: bool = False
    """Responses are imitated under prompts that say how they scored; the pair rule and the terms above do not apply."""
    experts: bool = False
    """One policy for each objective, trained on its share of the steps, instead of one for all vectors."""
    tuned_by: Literal["beta_c", "learning_rate"] = "beta_c"
    """The learner's setting that decides how far the method drifts, so the one a fair comparison chooses for it."""

    def choose_pairs(self, scores: Tensor, preference: Tensor, config: LearnerConfig, *, seed: int) -> ChosenPairs:
        """From normalised scores [B, N, K] and w+ [B, K]; see `learner.pairs`. `seed`: of routing.

        Of more than two responses, the scalarized rule pairs the best by w . s with the worst, the per-objective rule
        each objective's best with its worst.
        """
        import torch

        from learner.pairs import ChosenPairs, extreme_pairs, pair_weights, sample_routes, scalarized_pair_weights

        if self.pair_rule == "scalarized":
            utility = torch.einsum("bnk,bk->bn", scores.to(preference.dtype), preference)[..., None]
            prompt, responses, _ = extreme_pairs(utility, torch.ones_like(utility[:, 0]))
            weigh, own = scalarized_pair_weights, preference[prompt]
        else:
            if config.routing == "sampled" and len(preference):
                preference = sample_routes(preference, torch.Generator().manual_seed(seed))
            prompt, responses, own = extreme_pairs(scores, preference)
            weigh = pair_weights
        weight_y1, weight_y2 = weigh(scores[prompt[:, None], responses], own, min_margin=config.min_margin)
        return ChosenPairs(prompt=prompt, responses=responses, weight_y1=weight_y1, weight_y2=weight_y2)

    def pairs_per_prompt(self, num_responses: int, num_objectives: int) -> int:
        """Most pairs that one prompt can give."""
        if self.pair_rule == "scalarized" or self.supervised:
            return 1
        return min(num_objectives, num_responses * (num_responses - 1) // 2)

    def beta_w(self, config: LearnerConfig) -> float:
        """Strength of the information term L_YW; 0 turns it and its forward passes off."""
        return config.beta_w if self.information_term else 0.0


MI_EPO = Method(pair_rule="per_objective", information_term=True)
"""arXiv 2607.01392: L_YC + L_YW. The policy must follow w, and its answer must tell which w it followed.

Assumes w- is drawn independently of w+; where they coincide, L_YW is log 2 and pushes y away from its own w.
"""

MO_ODPO_PER_OBJECTIVE = Method(pair_rule="per_objective", information_term=False)
"""L_YC alone: MO-ODPO in the form of the MI-EPO paper (its eq. 5), i.e. MI-EPO with beta_w = 0.

Stationary at beta_c d = logit(a1 / (a1 + a2)): a conflicting pair asks for a bounded margin.
"""

MO_ODPO = Method(pair_rule="scalarized", information_term=False)
"""arXiv 2503.00295: online DPO on the winner by w . s, with normalised scores.

Equals the per-objective rule where w is one-hot or all objectives agree; a pair whose weighted scores tie is unused.
"""

MI_EPO_SCALARIZED = Method(pair_rule="scalarized", information_term=True)
"""The winner by w . s, and the information term of MI-EPO beside it."""

REWARDED_SOUPS = Method(pair_rule="scalarized", information_term=False, experts=True)
"""arXiv 2306.04488, with online DPO for each expert: K policies from one start, each trained under its one-hot w.

At evaluation the policy of w is the average of the experts' weights, sum_k w_k theta_k (`learner.soup`), asked with w
in the prompt; at a one-hot w it is that expert. The experts share the steps, so a soup samples as many responses as any
other method.
"""

RIC = Method(pair_rule="per_objective", information_term=False, supervised=True, tuned_by="learning_rate")
"""Rewards-in-Context (arXiv 2402.10207): log pi(y | G(x, levels of y)) is raised on responses annotated with what they
scored, and a user's w asks for the levels w / ||w||_2 (`rewards.targets`).

Half of the steps on responses of the start under w ~ Dirichlet; half on responses to high targets, filtered by RiC's
rule, with a third of filtered offline responses among them.
"""

METHODS = {
    "mi-epo": MI_EPO,
    "mi-epo-scalarized": MI_EPO_SCALARIZED,
    "mo-odpo": MO_ODPO,
    "mo-odpo-per-objective": MO_ODPO_PER_OBJECTIVE,
    "rewarded-soups": REWARDED_SOUPS,
    "ric": RIC,
}
