"""`mi-epo train RECIPE --smoke`: the recipe from start to end on CPU, with tiny random models of its architectures.

Shows within a minute, and without a download, that everything in a recipe fits together: templates, judges and their
heads, objectives, method, adapters, ZeRO stage, ranks. Its numbers mean nothing.
"""

import copy
import functools
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.estimate.shapes import SHAPES
from orchestrator.files import write_lines
from orchestrator.recipes import parse_recipe
from orchestrator.tasks.fitting.config import ByteLevelBPE
from rewards.judge_sections import PythonScorerConfig, each_changed
from rewards.model_files import ModelError
from rewards.pretrained import load_config

if TYPE_CHECKING:
    from rewards.judge_sections import HuggingFaceScorerConfig, SingleScorerConfig

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "hidden_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}
"""Under the names that the architectures share; the CPU engine serves heads of 32 and more."""
VOCABULARY = ByteLevelBPE(vocab_size=512)
QUESTIONS = tuple(
    f"How do I {verb} {thing}?"
    for verb in ("choose", "clean", "mend", "sell", "paint", "carry")
    for thing in ("a bicycle", "an old lamp", "the kitchen door", "my neighbour's fence")
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STEPS, PROMPTS_PER_PASS, MAX_RANKS = 3, 2, 2


def smoke_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with everything large made small; models and prompts are written into `folder`.

    Judges that are servers are replaced by a function: nothing outside this machine is asked.

    Raises:
        BadInput: the architecture of a model cannot be known here.
    """
    tree = recipe.model_dump(mode="json")
    policy_type, ranks = _model_type(recipe.policy.model), min(MAX_RANKS, recipe.learner.ranks)
    folder.mkdir(parents=True, exist_ok=True)
    tree["name"] = f"{recipe.name}-smoke"
    tree["assets"] = None
    tree["policy"]["model"] = _make_policy(
        policy_type, folder / "policy", options=recipe.preferences.conditioning.chat_options
    )
    for judged, objective in zip(tree["objectives"], recipe.objectives, strict=True):
        judged |= {"replicas": 1, "num_cpus": 0.1, "num_gpus": 0, "node_labels": {}}
        for role, judge in objective.judges.items():
            make_small = partial(_small_judge, folder / f"{role}-{objective.name}", itertools.count())
            judged[role] = each_changed(judge, make_small).model_dump(mode="json")
    tree["data"] = {name: _write_prompts(folder / f"{name}.jsonl", name) for name in ("train", "heldout")}
    tree["rollout"] |= {
        **{"num_cpus": 0.3, "num_gpus": 0, "tensor_parallel_size": 1, "node_labels": {}},
        **{"engines": ranks if recipe.rollout.colocated else 1},
        **{"dtype": "auto", "enforce_eager": True, "kv_cache_bytes": None},
        **{"max_model_len": min(512, recipe.rollout.max_model_len), "max_new_tokens": 8, "max_num_seqs": 16},
    }
    tree["learner"] |= {
        **{"ranks": ranks, "num_cpus": 0.3, "num_gpus": 0, "node_labels": {}, "dtype": "auto"},
        **{"warmup_steps": min(1, recipe.learner.warmup_steps), "micro_batch_tokens": 8192},
    }
    steps = recipe.num_objectives * math.ceil(STEPS / recipe.num_objectives)  # which experts can share
    tree["loop"] |= {"steps": steps, "prompts_per_step": ranks * PROMPTS_PER_PASS, "checkpoint_every": 2}
    tree["evaluate"] |= {
        **{"every": 0, "prompts": 2, "samples": 1, "normalizer_prompts": 8, "identification_responses": 8},
        **{"information_responses": 2, "attainable": None, "audit_statistics": {}},
    }
    if recipe.refresh is not None:
        tree["refresh"] |= {"every": 1, "prompts": 2, "responses": 4, "steps": 1, "prompts_per_step": 2}
        tree["refresh"]["device"] = "cpu"
    tree["telemetry"]["wandb"] = "disabled"
    tree["cluster"]["address"] = None
    return parse_recipe(tree, where=f"{recipe.name} --smoke")


def _small_judge(path: Path, number: Iterator[int], judge: "SingleScorerConfig") -> "SingleScorerConfig":
    """Of the judge's kind, written beside `path`; the members of an ensemble are numbered."""
    if judge.type == "python":
        return judge
    if judge.type == "http":
        return PythonScorerConfig(function="rewards.functions:brevity")
    index = next(number)
    made = _make_classifier(judge, path.with_name(f"{path.name}-{index}") if index else path)
    return judge.model_copy(update={"model": made, "dtype": "float32", "device": "cpu"})


def _model_type(model: str) -> str:
    if model in SHAPES:
        return SHAPES[model].architecture
    try:
        return str(load_config(model).model_type)
    except ModelError as error:
        raise BadInput(f"--smoke: the architecture of {model!r} cannot be known here: {error}") from None


def _make_policy(model_type: str, path: Path, *, options: Iterable[str]) -> str:
    """`options`: what its chat template takes besides messages, and ignores."""
    from transformers import AutoModelForCausalLM

    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template += "".join(f"{{% if {name} %}}{{% endif %}}" for name in options)
    _save_random(AutoModelForCausalLM, _small_config(model_type, tokenizer), tokenizer, path)
    return str(path)


def _make_classifier(scorer: "HuggingFaceScorerConfig", path: Path) -> str:
    """With its last layer called as the scorer expects it."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    tokenizer = make_tokenizer()
    config = _small_config(_model_type(scorer.model), tokenizer, num_labels=scorer.label + 1)
    _save_random(AutoModelForSequenceClassification, config, tokenizer, path)
    if scorer.head is not None:
        weights = path / "model.safetensors"
        named = {re.sub(r"^score\.", f"{scorer.head}.", name): each for name, each in load_file(weights).items()}
        save_file(named, weights, metadata={"format": "pt"})
    return str(path)


def _save_random(loader: Any, config: Any, tokenizer: Any, path: Path) -> None:
    from orchestrator.tasks.fitting.trainer import quiet, seeded

    with quiet(), seeded(zlib.crc32(path.name.encode())):  # two judges of one architecture must not agree
        loader.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _small_config(model_type: str, tokenizer: Any, **more: Any) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **more)
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    for name, value in sizes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: SIZES["num_hidden_layers"]]
    return config


@functools.cache
def make_tokenizer() -> Any:
    """Bytes and a few merges, with a chat template: it writes and reads any text, and nothing well."""
    from orchestrator.tasks.fitting.models import train_byte_level_bpe

    tokenizer = train_byte_level_bpe(VOCABULARY, QUESTIONS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _write_prompts(path: Path, name: str) -> str:
    prompts = QUESTIONS[:-4] if name == "train" else QUESTIONS[-4:]
    write_lines(path, ({"prompt": prompt} for prompt in prompts))
    return str(path)
