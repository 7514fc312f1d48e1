"""Answers of a model by vLLM: a tenth of the time that plain transformers take on CPU."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from actors.config import RolloutConfig
from actors.engine import engine_environment, load_engine, sampling_params
from orchestrator.errors import RunFailed
from orchestrator.pace import Pace
from rewards.environment import derive_seed, one_line

SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


def sample_answers(
    progress: Callable[[str], None],
    model: str,
    prompt_ids: Sequence[Sequence[int]],
    config: RolloutConfig,
    *,
    per_prompt: int,
    seed: int,
) -> list[list[str]]:
    """`per_prompt` answers to each prompt, special tokens left out; the same for the same seed.

    One that was cut at the limit ends with its last whole sentence, and is empty where it has none.

    For `run_apart`: a process has one engine.

    Raises:
        RunFailed: the engine did not load or did not answer; one line.
    """
    os.environ |= engine_environment(config, model)
    try:
        llm = load_engine(config, model=model, seed=seed)
        tokenizer = llm.get_tokenizer()
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompt_ids for _ in range(per_prompt)]
        progress(f"sampling {len(inputs)} answers ...")
        sampling = [
            sampling_params(config, seed=derive_seed(seed, index) % 2**31, temperature=None)
            for index in range(len(inputs))
        ]
        outputs = llm.generate(inputs, sampling, use_tqdm=partial(bar, progress))
    except Exception as error:  # the engine raises many kinds
        raise RunFailed(f"{model} could not be sampled from: {one_line(error)}") from None
    texts = [_text(tokenizer, output.outputs[0]) for output in outputs]
    return [texts[first : first + per_prompt] for first in range(0, len(texts), per_prompt)]


def bar(progress: Callable[[str], None], items: Any = None, *, total: int | None = None, **looks: Any) -> Any:
    """What vLLM takes for tqdm: around the prompts that it renders, which takes no time, and for answers by number."""
    return items if total is None else Pace(say=progress, what="sampling", unit="answers", total=total, **looks)


def _text(tokenizer: Any, answer: Any) -> str:
    text = str(tokenizer.decode(answer.token_ids, skip_special_tokens=True)).strip()
    return whole_sentences(text) if answer.finish_reason == "length" else text


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty where it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
