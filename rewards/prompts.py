"""What a run asks: a text or a dialogue, with what else its row of the data holds, for judges to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
MARKERS: Mapping[Role, str] = {"user": "Human", "assistant": "Assistant"}
"""How turns are written in a judge's text, as HH-RLHF writes them. What the system says is no part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Example: Turn(role="assistant", content="In water, for eight minutes.")"""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Two are the same whose words are the same.

    Example: Prompt(text="What is 3 + 4?", columns={"answer": "7"})
    """

    text: str
    """What the person says last."""
    earlier: tuple[Turn, ...] = ()
    """The dialogue before, and what the system says."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Of its row: those that a judge asks for."""

    @property
    def plain(self) -> str:
        """One text, for judges and for people: the text itself, or the dialogue with its turns marked.

        Its first turn has no mark: templates write that.

        Example: "hi\\n\\nAssistant: Hello!\\n\\nHuman: How do I boil an egg?"
        """
        turns = [turn for turn in self.earlier if turn.role in MARKERS]
        said = [*(turn.content for turn in turns), self.text]
        marks = [*(MARKERS[turn.role] for turn in turns[1:]), MARKERS["user"]]
        return said[0] + "".join(f"\n\n{mark}: {words}" for mark, words in zip(marks, said[1:], strict=False))


def as_prompt(prompt: Prompt | str) -> Prompt:
    """A plain text is a prompt of one turn."""
    return Prompt(text=prompt) if isinstance(prompt, str) else prompt


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """Column -> its value for each prompt; all prompts have the same columns.

    Example: columns_of([Prompt(text="2 + 2?", columns={"answer": "4"})]) -> {"answer": ["4"]}
    """
    return {name: [prompt.columns[name] for prompt in prompts] for name in (prompts[0].columns if prompts else ())}


def read_dialogue(messages: Sequence[Any]) -> tuple[tuple[Turn, ...], str]:
    """(what comes before, what the person says last) of a list of {"role", "content"}; an answer after it is left out.

    Raises:
        ValueError: a message or an order of them that no chat template is made for; says which.
    """
    turns = [_read_message(index, message) for index, message in enumerate(messages)]
    if turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1].role != "user":
        raise ValueError(f"must hold a message of the user's, and none but an answer after it, got {_roles(turns)}")
    spoken = turns[1:] if turns[0].role == "system" else turns
    for index, turn in enumerate(spoken):
        if turn.role != ("user", "assistant")[index % 2]:
            rule = "must be of user and assistant in turn, after at most one message of the system"
            raise ValueError(f"{rule}, got {_roles(turns)}")
    return tuple(turns[:-1]), turns[-1].content


def _read_message(index: int, message: Any) -> Turn:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    known = next((known for known in ROLES if known == role), None)
    if known is None or not isinstance(content, str) or not content.strip():
        raise ValueError(
            f"message {index} must be {{'role': {' or '.join(ROLES)}, 'content': a non-empty text}}, "
            f"got {message!r:.100}"
        )
    return Turn(role=known, content=content)


def _roles(turns: Sequence[Turn]) -> str:
    return ", ".join(turn.role for turn in turns) or "none"
