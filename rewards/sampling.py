"""How a policy is sampled: the same values in training, in evaluation, by `mi-epo generate` and by a server.

Importing this module needs pydantic only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from rewards.model_files import ModelError, read_json
from rewards.section import Section

COLDEST = 0.01
"""vLLM draws at no lower temperature, but for 0."""
WHOLE_POLICY: Final[Mapping[str, float]] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What a policy folder may set otherwise, and training never does: no token is left out or made less likely."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class SamplingSection(Section):
    """Base of every section that says how responses are drawn."""

    max_new_tokens: int = Field(default=32, ge=1)
    """Longest response, in tokens, the end-of-sequence token included."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling mass. Reported log-probabilities are the whole policy's, whatever stands here."""

    @field_validator("temperature")
    @classmethod
    def _temperature_is_drawn_at(cls, temperature: float) -> float:
        if 0 < temperature < COLDEST:
            raise ValueError(f"must be 0 or at least {COLDEST}, as vLLM draws no colder, got {temperature:g}")
        return temperature

    def values(self) -> dict[str, float]:
        """Everything that a draw depends on, by the names that vLLM and transformers share."""
        return {"temperature": self.temperature, "top_p": self.top_p, **WHOLE_POLICY}

    def generation_config(self, token_ids: Mapping[str, Any]) -> dict[str, Any]:
        """The same as a `generation_config.json`, which transformers and servers sample by when they are told nothing.

        transformers takes no temperature of 0, so greedy is its most likely token out of one.

        Args:
            token_ids: has those of `TOKEN_IDS` that are known.
        """
        greedy = {"temperature": 1.0, "top_p": 1.0, "top_k": 1} if self.temperature == 0 else {}
        known = {name: token_ids[name] for name in TOKEN_IDS if token_ids.get(name) is not None}
        return {"do_sample": True, "max_new_tokens": self.max_new_tokens, **self.values(), **greedy, **known}


def read_token_ids(folder: Path) -> dict[str, Any]:
    """Those of `TOKEN_IDS` that a model's `config.json` and `generation_config.json` tell; the latter counts more.

    Raises:
        ModelError: a file that is no JSON object, or an id that is neither a number nor a list of them; names the file.
    """
    found: dict[str, Any] = {}
    for file in (folder / "config.json", folder / "generation_config.json"):
        if not file.is_file():
            continue
        told = read_json(file)
        for name in TOKEN_IDS:
            value = told.get(name)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(token_id) is int for token_id in ids):
                raise ModelError(f"{file}: {name} must be a token id or a list of them, got {value!r:.80}")
            if value is not None and value != -1:  # -1 is how old configurations say that there is none
                found[name] = value
    return found
