"""A learner's update against the same arithmetic in plain torch, with padding and without."""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.bench.check.updates import alone
from rewards.pretrained import load_config, load_model

if TYPE_CHECKING:
    from torch import Tensor

    from learner.examples import Batch

ROUNDS = 3
"""Of each, in turn, after one that warms up; the median counts."""
BETA = 0.1
LEARNING_RATE = 1e-6
W_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Example: Update(pairs=8, prompt=200, response=64, micro_batch_tokens=2048)"""

    pairs: int
    prompt: int
    """Most tokens; a prompt has at least three quarters of them."""
    response: int
    """Most tokens; a response has at least a quarter of them."""
    micro_batch_tokens: int


def measure_learners(folder: Path, update: Update) -> dict[str, Any]:
    """Seconds of an update of all weights in float32: the product's under `mo-odpo`, the same loss in plain torch on
    padded rectangles and one sequence at a time, and the product's under `mi-epo`, which passes w- too.

    Args:
        folder: of the policy.
    """
    import torch

    batch = make_batch(update, load_config(str(folder)).vocab_size)
    pairs, rows = _without_w_minus(batch), _rows(batch, update.micro_batch_tokens)
    alone()
    plain, product = _PlainLearner(folder), _Product(folder, update)
    seconds = _medians(
        {
            "product": lambda: product.update(pairs, "mo-odpo"),
            "mi_epo": lambda: product.update(batch, "mi-epo"),
            "padded": lambda: plain.update(pairs, rows=rows),
            "unpadded": lambda: plain.update(pairs, rows=1),
        }
    )
    product.engine.close()
    return {
        **asdict(update),
        "threads": torch.get_num_threads(),
        **{f"{side}_seconds": value for side, value in seconds.items()},
        "padded_over_product": seconds["padded"] / seconds["product"],
        "unpadded_over_product": seconds["unpadded"] / seconds["product"],
        "mi_epo_over_mo_odpo": seconds["mi_epo"] / seconds["product"],
    }


def _medians(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, in turn, so that a busy machine is busy for all."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(ROUNDS + 1):
        for side, work in sides.items():
            started = time.perf_counter()
            work()
            if round_:
                found[side].append(time.perf_counter() - started)
    return {side: statistics.median(seconds) for side, seconds in found.items()}


class _Product:
    """The learner as it is shipped."""

    def __init__(self, folder: Path, update: Update) -> None:
        from learner.config import LearnerConfig
        from learner.engine import LearnerEngine
        from learner.methods import METHODS

        self.config = LearnerConfig(
            lora=None,
            gradient_checkpointing=False,
            learning_rate=LEARNING_RATE,
            micro_batch_tokens=update.micro_batch_tokens,
        )
        self.methods = {name: METHODS[name](METHODS[name].Config(type=name)) for name in ("mo-odpo", "mi-epo")}
        self.engine = LearnerEngine(
            self.config, model=str(folder), method=self.methods["mi-epo"].config, total_steps=99, seed=0
        )

    def update(self, batch: "Batch[Any]", method: str) -> None:
        """One step under a method: all of them share policy, reference and optimizer, as a process has one learner."""
        from learner.dealing import deal

        self.engine.method = self.methods[method]
        [share] = deal(
            batch,
            ranks=1,
            micro_batch_tokens=self.config.micro_batch_tokens,
            longest_shared=self.engine.policy.longest_shared,
        )
        self.engine.update(share)


class _PlainLearner:
    """Online DPO as it is commonly written: logits of whole sequences, a frozen reference, AdamW."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.policy, self.reference = (
            load_model("AutoModelForCausalLM", str(folder), head="whole", dtype=torch.float32) for _ in range(2)
        )
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=LEARNING_RATE, fused=True)

    def update(self, batch: "Batch[Any]", *, rows: int) -> None:
        """One step on the first response of every pair against the second; so many sequences pass together."""
        import torch

        pairs_at_once = max(1, rows // 2)
        for first in range(0, len(batch.examples), pairs_at_once):
            examples = batch.examples[first : first + pairs_at_once]
            sequences = [(example.prompts[0], response) for example in examples for response in example.responses]
            with torch.no_grad():
                reference_S = padded_logprobs(self.reference, sequences, rows)
            logratio_P2 = (padded_logprobs(self.policy, sequences, rows) - reference_S).view(-1, 2)
            margin_P = BETA * (logratio_P2[:, 0] - logratio_P2[:, 1])
            (-torch.nn.functional.logsigmoid(margin_P).sum() / len(batch.examples)).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def padded_logprobs(model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int) -> "Tensor":
    """[S] of whole responses, so many rows to a rectangle."""
    import torch

    parts = []
    for first in range(0, len(sequences), rows):
        some = sequences[first : first + rows]
        width = max(len(prompt) + len(response) for prompt, response in some)
        ids_RT = torch.zeros(len(some), width, dtype=torch.long)
        known_RT, answered_RT = torch.zeros(2, len(some), width, dtype=torch.bool)
        for row, (prompt, response) in enumerate(some):
            end = len(prompt) + len(response)
            ids_RT[row, :end] = torch.tensor([*prompt, *response])
            known_RT[row, :end] = True
            answered_RT[row, len(prompt) : end] = True
        mask = None if len(some) == 1 else known_RT.long()
        logits = model(input_ids=ids_RT, attention_mask=mask, use_cache=False).logits[:, :-1]
        logprobs_RT = logits.log_softmax(-1).gather(-1, ids_RT[:, 1:, None]).squeeze(-1)
        parts.append((logprobs_RT * answered_RT[:, 1:]).sum(-1))
    return torch.cat(parts)


def make_batch(update: Update, vocabulary: int) -> "Batch[Any]":
    """Pairs of ragged lengths, each prompt under w+ and w-, which stand at its end; the first response wins."""
    from learner.examples import Batch, Example
    from learner.methods.mo_odpo import PairTargets

    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    def example() -> Example[PairTargets]:
        before_w = tokens(rng.randint(3 * update.prompt // 4, update.prompt) - W_TOKENS)
        return Example(
            prompts=(before_w + tokens(W_TOKENS), before_w + tokens(W_TOKENS)),
            responses=tuple(tokens(rng.randint(max(1, update.response // 4), update.response)) for _ in range(2)),
            targets=PairTargets(responses=((0, 1),), weight=np.array([[[0.7, 0.0], [0.3, 0.0]]])),
            preference=(0.7, 0.3),
        )

    return Batch(step=0, examples=tuple(example() for _ in range(update.pairs)))


def _without_w_minus(batch: "Batch[Any]") -> "Batch[Any]":
    return replace(batch, examples=tuple(replace(example, prompts=example.prompts[:1]) for example in batch.examples))


def _rows(batch: "Batch[Any]", micro_batch_tokens: int) -> int:
    """Sequences to a rectangle that holds no more tokens than the product's micro-batch, and whole pairs."""
    from learner.examples import longest_sequence

    longest = max(map(longest_sequence, batch.examples))
    return 2 * max(1, math.floor(micro_batch_tokens / longest / 2))
