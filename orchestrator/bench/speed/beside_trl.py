"""Whole steps of TRL's OnlineDPOTrainer, as somebody who does not know this project would train.

usage: python -P beside_trl.py WORK.json RESULT.json

A program of its own, run by `orchestrator.bench.speed.steps` where TRL is to be found. WORK: policy, judges, prompts
(JSONL, used as they stand), folder, threads, batch, new_tokens, max_length, steps. RESULT: version, seconds of every
step but the first.
"""

import itertools
import json
import os
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.files import read_lines
from rewards.pretrained import load_model, load_tokenizer


def train(work: dict[str, Any]) -> list[float]:
    """Seconds of every step but the first, which compiles and allocates."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    torch.set_num_threads(work["threads"])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    rows = [row["prompt"] for row in read_lines(Path(work["prompts"]))]
    rng = random.Random(0)
    data = Dataset.from_dict({"prompt": [rng.choice(rows) for _ in range(work["batch"] * work["steps"])]})
    trainer = OnlineDPOTrainer(
        model=load_model("AutoModelForCausalLM", work["policy"], head="whole", dtype=torch.float32),
        reward_funcs=[
            load_model("AutoModelForSequenceClassification", judge, head="whole", dtype=torch.float32)
            for judge in work["judges"]
        ],
        args=OnlineDPOConfig(
            output_dir=work["folder"],
            per_device_train_batch_size=work["batch"],
            max_steps=work["steps"],
            learning_rate=1e-6,
            max_new_tokens=work["new_tokens"],
            max_length=work["max_length"],
            temperature=1.0,
            beta=0.1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            missing_eos_penalty=None,
            report_to=[],
            logging_steps=10**6,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=load_tokenizer(work["policy"], padding_side="left"),
        reward_processing_classes=[load_tokenizer(judge) for judge in work["judges"]],
        callbacks=[Clock()],
    )
    trainer.train()
    return [end - start for start, end in itertools.pairwise(ends)]


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TRL_EXPERIMENTAL_SILENCE": "1"}
    asked, result = map(Path, sys.argv[1:])
    found = train(json.loads(asked.read_text(encoding="utf-8")))
    result.write_text(json.dumps({"version": version("trl"), "seconds": found}), encoding="utf-8")
