"""What a policy says of its ten likeliest next tokens, and what over-optimisation makes of them."""

import numpy as np
import pytest
import torch
from learner_engines import MakeEngine, update
from learner_ranks import method

from learner.examples import Batch, Example
from learner.methods.mo_odpo import PairTargets
from orchestrator.run.health import LikelyTokens
from orchestrator.run.stages import Probed
from orchestrator.sections import HealthConfig


def test_the_likeliest_tokens_are_those_of_the_models_own_logits(make_engine: MakeEngine, model: str) -> None:
    from transformers import AutoModelForCausalLM

    prompts, responses = [(3, 20, 21), (3, 22)], [(30, 31, 1), (32, 1)]
    causal_lm = AutoModelForCausalLM.from_pretrained(model)
    for prompt, response, found in zip(
        prompts, responses, make_engine().top_tokens(prompts, responses, rows=1), strict=True
    ):
        logits = causal_lm(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        top = logits.log_softmax(-1).sort(descending=True).values[:, :10]
        entropy = -(top.exp() * top).sum(-1).mean()
        assert found == pytest.approx((entropy.item(), top.exp().sum(-1).mean().item()), abs=1e-5)


def test_a_policy_that_is_over_optimised_for_one_answer_is_told_by_its_likeliest_tokens(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(by=method("mo-odpo", beta_c=0.01), learning_rate=1e-2)
    likely, problems = LikelyTokens(HealthConfig()), []
    prompts, responses = ((3, 20, 21),), ((30, 31, 1), (32, 33, 1))
    targets = PairTargets(responses=((0, 1),), weight=np.array([[[1.0, 0.0]]]))
    example = Example(prompts=prompts, responses=responses, targets=targets, preference=(1.0,))
    for step in range(40):
        (entropy, mass), _ = engine.top_tokens(prompts * 2, responses)
        problems.append(likely.problems(Probed(engine_mismatch=0.0, top_entropy=entropy, top_mass=mass)))
        update(engine, Batch(step=step, examples=(example,)))
    assert problems[:2] == [[], []] and problems[-1] == ["narrow_tokens"]
