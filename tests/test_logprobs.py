"""Chunked log-probabilities against the model's own logits: values, gradients, adapters, changed logits."""

from pathlib import Path

import pytest
import torch
from learner_ranks import pair_example
from tiny_models import make_tiny_policy
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from learner.config import LearnerConfig
from learner.policy import PolicyModule, chunked_logprobs, load_policy
from learner.sequences import Evaluated, SequenceBlock, pack_examples, pack_sequences
from learner.types import LearnerError

PROMPTS = [(3, 20, 21, 4), (3, 22, 4), (3, 23, 24, 25, 26, 4)]
RESPONSES = [(30, 31, 1), (32, 33, 34, 35, 36), (37,)]
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def full_logprobs(causal_lm: torch.nn.Module) -> Tensor:
    """[M] of the same tokens, one sequence at a time, through the model's own whole logits."""
    parts = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        input_ids = torch.tensor([[*prompt, *response]])
        logits = causal_lm(input_ids=input_ids).logits[0, len(prompt) - 1 : -1].float()
        parts.append(logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(parts)


def run(policy: PolicyModule, block: SequenceBlock) -> Tensor:
    result: Tensor = policy(*block.tensors())
    return result


def test_packing_lays_out_prompt_and_response_and_points_at_the_predicting_token() -> None:
    block = pack_sequences(PROMPTS, RESPONSES)
    assert block.num_tokens == 19
    flat = block.input_ids.flatten()
    assert flat[block.positions].tolist() == [4, 30, 31, 4, 32, 33, 34, 35, 4]
    assert block.targets.tolist() == [token for response in RESPONSES for token in response]
    assert block.sum_by_sequence(torch.ones(9)).tolist() == [3, 5, 1]


def test_examples_are_packed_by_prompt_then_example_then_response_and_found_there_again() -> None:
    examples = [pair_example(((10 + i,), (20 + i,), (30 + i,)), ((5,), (6, 7))) for i in range(2)]
    block = pack_examples(examples, shared=False)
    assert block.input_ids[:, 0].tolist() == [10, 10, 11, 11, 20, 20, 21, 21, 30, 30, 31, 31]
    at = Evaluated(examples=examples, block=block, logprob=block.targets.float(), reference=torch.zeros(18))
    assert at.lengths().tolist() == [1, 2] * 6
    assert at.passes([[(0, 1)], [(1, 0)]])[1].tolist() == [[4, 5], [7, 6]]
    assert at.logratio().tolist() == [5, 13] * 6
    assert at.logratio(per_token=True).tolist() == [5, 6.5] * 6


def test_packing_refuses_an_empty_response() -> None:
    with pytest.raises(ValueError, match="sequence 1: prompt and response must not be empty"):
        pack_sequences([(1,), (2,)], [(3,), ()])


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_values_and_gradients_equal_those_of_whole_logits(
    tmp_path: Path, tie: bool, gradient_checkpointing: bool
) -> None:
    model = make_tiny_policy(tmp_path, tie=tie)
    config = LearnerConfig(logprob_chunk_tokens=2, gradient_checkpointing=gradient_checkpointing)
    policy = load_policy(str(model), config, dtype=torch.float32)
    expected_model = AutoModelForCausalLM.from_pretrained(model)
    weights = torch.linspace(-1, 1, 9)
    actual, expected = run(policy, pack_sequences(PROMPTS, RESPONSES)), full_logprobs(expected_model)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, parameter), other in zip(policy.causal_lm.named_parameters(), expected_model.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None, name
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_logits_that_are_made_again_give_the_same_bits_as_those_that_were_kept() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50)
    found = []
    for recompute in (False, True):
        hidden = torch.linspace(-1, 1, 56).reshape(7, 8).requires_grad_()
        logprob = chunked_logprobs(
            hidden, torch.arange(7), head=head, transform=torch.tanh, chunk_tokens=3, recompute=recompute
        )
        head.zero_grad()
        logprob.prod().backward()
        assert hidden.grad is not None and head.weight.grad is not None
        found.append((logprob.detach(), hidden.grad, head.weight.grad.clone()))
    assert all(map(torch.equal, *found))


def test_adapters_take_part_and_only_they_get_gradients(tmp_path: Path) -> None:
    model = make_tiny_policy(tmp_path)
    config = LearnerConfig.model_validate({"logprob_chunk_tokens": 4, "lora": {"rank": 2, "dropout": 0}})
    policy = load_policy(str(model), config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    actual = run(policy, pack_sequences(PROMPTS, RESPONSES))
    torch.testing.assert_close(actual, full_logprobs(policy.causal_lm), atol=1e-5, rtol=0)
    base = full_logprobs(AutoModelForCausalLM.from_pretrained(model))
    assert (actual - base).abs().max() > 1e-3
    actual.sum().backward()
    assert {"lora_" in name for name, p in policy.named_parameters() if p.grad is not None} == {True}
    with policy.model.disable_adapter(), torch.no_grad():  # type: ignore[operator]
        torch.testing.assert_close(run(policy, pack_sequences(PROMPTS, RESPONSES)), base, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, final_logit_softcapping=0.5, query_pre_attn_scalar=8),
        CohereConfig(**SMALL, logit_scale=4.0),
        GraniteConfig(**SMALL, logits_scaling=0.25),
    ],
    ids=["softcap", "scale", "scaling"],
)
def test_known_changes_of_the_logits_are_applied(config: object) -> None:
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(config).eval()
    policy = PolicyModule(causal_lm, chunk_tokens=3)
    policy.check_head()
    actual = run(policy, pack_sequences(PROMPTS, RESPONSES))
    torch.testing.assert_close(actual, full_logprobs(causal_lm), atol=1e-5, rtol=0)


def test_an_unknown_change_of_the_logits_is_refused() -> None:
    config = GraniteConfig(**SMALL, logits_scaling=0.25)
    policy = PolicyModule(AutoModelForCausalLM.from_config(config).eval(), chunk_tokens=3)
    policy.transform = lambda logits: logits  # as if the scaling were not known
    with pytest.raises(ValueError, match=r"GraniteForCausalLM: log-probabilities .* not supported"):
        policy.check_head()


def test_a_folder_without_a_causal_language_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(LearnerError, match=f"policy.model: no configuration could be loaded from '{tmp_path}'"):
        load_policy(str(tmp_path), LearnerConfig(), dtype=torch.float32)
