"""Sequences that begin alike pass once: the tree, the mask, and the same log-probabilities and gradients."""

import itertools
import random
import sys
from pathlib import Path

import pytest
import torch
from learner_ranks import pair_example
from test_logprobs import SMALL
from tiny_models import make_tiny_policy
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from learner.config import LearnerConfig
from learner.policy import PolicyModule, load_policy
from learner.sequences import pack_examples, pack_sequences
from learner.tree_attention import longest_shared, tree_mask
from learner.trees import fill_rows, grow, plant

GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
TWO_LAYERS = {**SMALL, "num_hidden_layers": 2}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TWO_LAYERS),
    "qwen2": Qwen2Config(**TWO_LAYERS),
    "qwen3": Qwen3Config(**TWO_LAYERS),
    "gemma2": Gemma2Config(**TWO_LAYERS, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**TWO_LAYERS, query_pre_attn_scalar=8),
    "gpt2": GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}
BEFORE_W, POSITIVE, NEGATIVE = (3, 20, 21, 22, 23), (30, 31, 4), (32, 31, 4)
EXAMPLES = [
    pair_example(((*BEFORE_W, *POSITIVE), (*BEFORE_W, *NEGATIVE)), ((40, 41, 42, 1), (40, 43, 1))),
    pair_example(((3, 25, *POSITIVE), (3, 25, *POSITIVE)), ((44,), (45, 46, 47, 48, 49, 50, 1))),
    pair_example(((3, *POSITIVE), (5, *NEGATIVE)), ((44, 1), (45, 1))),
]


def make(config: PreTrainedConfig, dtype: torch.dtype = torch.float64, attention: str | None = None) -> PolicyModule:
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
    return PolicyModule(causal_lm, chunk_tokens=5)


def gradients(policy: PolicyModule, *, shared: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [M] and the gradient of a weighted sum of them, over all trained parameters in one row."""
    logprob_M = policy(*pack_examples(EXAMPLES, shared=shared).tensors())
    policy.zero_grad()
    (logprob_M * torch.linspace(-1, 1, len(logprob_M))).sum().backward()
    trained = [parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None]
    return logprob_M.detach(), torch.cat(trained)


def tried(policy: PolicyModule) -> int:
    return longest_shared(policy, policy.causal_lm)


def test_every_beginning_stands_once_and_every_sequence_is_a_path() -> None:
    tree = grow([(1, 4, 7), (1, 4, 8, 9), (1, 4), (2, 4)])
    assert tree.tokens.tolist() == [1, 4, 7, 8, 9, 2, 4]
    assert tree.depths.tolist() == [0, 1, 2, 2, 3, 0, 1]
    assert tree.ends.tolist() == [5, 5, 3, 5, 5, 7, 7]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 1, 3, 4], [0, 1], [5, 6]]


def test_a_node_sees_its_own_beginning_and_nothing_else() -> None:
    """Compared with the definition, on random sequences of few tokens and in rows with other trees."""
    draw = random.Random(0)
    for _ in range(20):
        groups = [[tuple(draw.choices((1, 2), k=draw.randint(1, 5))) for _ in range(4)] for _ in range(3)]
        trees = [grow(group) for group in groups]
        forest = plant(trees, [[0, 2], [1]])
        width = forest.tokens.shape[1]
        sees = tree_mask(torch.from_numpy(forest.ends), torch.float32)[:, 0] == 0
        allowed = torch.eye(width, dtype=torch.bool).repeat(2, 1, 1)
        for start, tree, group in zip(forest.starts, trees, groups, strict=True):
            row, column = divmod(start, width)
            assert len(tree) == len({sequence[:n] for sequence in group for n in range(1, len(sequence) + 1)})
            for path, sequence in zip(tree.paths, group, strict=True):
                assert tuple(forest.tokens[row, column + path]) == sequence
                assert forest.depths[row, column + path].tolist() == list(range(len(sequence)))
                for key, query in itertools.combinations(path + column, 2):
                    allowed[row, query, key] = True
        assert torch.equal(sees, allowed)


def test_rows_take_the_longest_first_and_waste_little() -> None:
    assert fill_rows([3, 9, 4, 2, 6], 10) == [[1], [4, 2], [0, 3]]


def test_what_passes_once_is_counted_once() -> None:
    shared, apart = (pack_examples(EXAMPLES[:1], shared=shared) for shared in (True, False))
    assert apart.num_tokens == 2 * (8 + 3) + 2 * (8 + 2)
    assert shared.num_tokens == 5 + 2 * (3 + 1 + 2 + 1)
    assert shared.num_sequences == apart.num_sequences == 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_sequences_that_pass_alone(family: str, attention: str) -> None:
    policy = make(FAMILIES[family], attention=attention)
    (alone, expected), (in_tree, actual) = (gradients(policy, shared=shared) for shared in (False, True))
    torch.testing.assert_close(in_tree, alone, atol=1e-6, rtol=0)  # log-probabilities are float32
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    assert expected.abs().max() > 1e-2


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_adapters_and_their_reference_pass_in_the_tree_too(tmp_path: Path, gradient_checkpointing: bool) -> None:
    settings = {"gradient_checkpointing": gradient_checkpointing, "lora": {"rank": 2, "dropout": 0}}
    config = LearnerConfig.model_validate(settings)
    policy = load_policy(str(make_tiny_policy(tmp_path)), config, dtype=torch.float32)
    assert policy.longest_shared
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    (alone, expected), (in_tree, actual) = (gradients(policy, shared=shared) for shared in (False, True))
    torch.testing.assert_close(in_tree, alone, atol=1e-5, rtol=0)
    assert (actual - expected).norm() < 3e-5 * expected.norm()
    ours, reference = policy(*pack_examples(EXAMPLES, shared=True).tensors(), with_reference=True)
    _, expected = policy(*pack_examples(EXAMPLES, shared=False).tensors(), with_reference=True)
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=0)
    assert (ours - reference).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_keeps_to_the_mask_is_known(family: str, dtype: torch.dtype) -> None:
    assert tried(make(FAMILIES[family], dtype)) == (4096 if "gemma" in family else sys.maxsize)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2),  # its positions come from the mask
        MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2),  # it has no attention
    ],
    ids=["bloom", "mamba"],
)
def test_a_model_that_does_not_is_known_too(config: PreTrainedConfig) -> None:
    assert tried(make(config, torch.float32)) == 0


def test_sharing_can_be_turned_off(tmp_path: Path) -> None:
    config = LearnerConfig(prefix_sharing="off")
    assert load_policy(str(make_tiny_policy(tmp_path)), config, dtype=torch.float32).longest_shared == 0


def test_sequences_of_no_common_beginning_stand_side_by_side() -> None:
    block = pack_sequences([(1,), (2,), (3,)], [(5, 6, 7), (5,), (6, 7)], together=[[0], [1], [2]])
    assert block.input_ids.tolist() == [[1, 5, 6], [3, 6, 2]]
    assert block.positions.tolist() == [0, 1, 2, 5, 3, 4]
