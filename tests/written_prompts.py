"""What a renderer wrote, read again: that nothing of prompt or weights is lost on the way."""

import re

import numpy as np

from rewards.preferences import PromptRenderer
from rewards.prompts import Prompt
from rewards.simplex import PreferenceError


def parse(renderer: PromptRenderer, text: str) -> tuple[str, np.ndarray]:
    """Undo `renderer.text` (`text` style): the plain prompt and the printed weights, float64 [K].

    The weights' place follows from the template and their fixed length alone, so a prompt that contains something
    that looks like weights comes back whole. Raises PreferenceError when the text was not written by this renderer.
    """
    if renderer.config.style != "text":
        raise PreferenceError(f"only style 'text' can be parsed, got style {renderer.config.style!r}")
    template = renderer.config.template
    head, middle, tail = re.split(r"\{prompt\}|\{weights\}", template)
    inner = text[len(head) : len(text) - len(tail)]
    some = np.eye(len(renderer.objectives))[0]
    length = len(renderer.text("", some)) - len(head + middle + tail)
    if template.index("{prompt}") < template.index("{weights}"):
        start = len(inner) - length
        prompt, weights = inner[: max(start - len(middle), 0)], inner[max(start, 0) :]
    else:
        prompt, weights = inner[length + len(middle) :], inner[:length]
    match = re.fullmatch(_pattern(renderer), weights)
    if match:
        units = [round(float(value) * 10**renderer.decimals) for value in match.groups()]
        if sum(units) == 10**renderer.decimals:
            preference_K = np.array(units) / 10**renderer.decimals
            if renderer.text(prompt, preference_K) == text:
                return prompt, preference_K
    raise PreferenceError(f"text does not follow the template {template!r}: {text[:200]!r}")


def _pattern(renderer: PromptRenderer) -> str:
    number = rf"([01]\.\d{{{renderer.decimals}}})"
    pieces = []
    for name in renderer.objectives:
        before, after = renderer.config.weight.replace("{name}", name).split("{weight}")
        pieces.append(re.escape(before) + number + re.escape(after))
    return re.escape(renderer.config.separator).join(pieces)


def plain(*texts: str) -> list[Prompt]:
    """Prompts of one text each."""
    return [Prompt(text=text) for text in texts]
