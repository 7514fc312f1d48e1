"""Answers of a model by vLLM, in a process of its own: a tenth of the time that plain transformers take on CPU."""

import multiprocessing
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.config import RolloutConfig
from orchestrator.errors import RunFailed
from rewards.environment import derive_seed, one_line

SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


def sample_answers(
    model: Path,
    prompt_ids: Sequence[Sequence[int]],
    config: RolloutConfig,
    *,
    per_prompt: int,
    seed: int,
    timeout_s: float,
) -> list[list[str]]:
    """`per_prompt` different answers to each prompt, special tokens left out; the same for the same seed.

    Raises:
        RunFailed: the engine did not load, or not all was answered in time; one line.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    asked = (theirs, str(model), [list(ids) for ids in prompt_ids], config, per_prompt, seed)
    process = context.Process(target=_answer, args=asked, name="answers")
    process.start()
    theirs.close()
    try:
        if not mine.poll(timeout_s):
            raise RunFailed(f"{len(prompt_ids)} prompts were not answered within {timeout_s:g} s")
        try:
            answers: list[list[str]] | str = mine.recv()
        except EOFError:
            raise RunFailed("the process that answers prompts ended before it had answered") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answers, str):
        raise RunFailed(f"the starting policy could not be sampled from: {answers}")
    return answers


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty where it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def _answer(
    pipe: Any, model: str, prompt_ids: list[list[int]], config: RolloutConfig, per_prompt: int, seed: int
) -> None:
    from actors.engine import engine_environment, load_engine, sampling_params

    os.environ |= engine_environment(config, model)
    try:
        llm = load_engine(config, model=model, seed=seed)
        tokenizer = llm.get_tokenizer()
        inputs = [{"prompt_token_ids": ids} for ids in prompt_ids for _ in range(per_prompt)]
        sampling = [
            sampling_params(config, seed=derive_seed(seed, index) % 2**31, temperature=None)
            for index in range(len(inputs))
        ]
        outputs = llm.generate(inputs, sampling, use_tqdm=False)
        texts = [tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True).strip() for output in outputs]
        pipe.send([texts[first : first + per_prompt] for first in range(0, len(texts), per_prompt)])
    except Exception as error:
        pipe.send(one_line(error))
