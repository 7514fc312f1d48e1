"""What README and docs name is there: links, headings, files, commands with their options, targets of make."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bench.reference import anchor
from orchestrator.cli import parse_arguments

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "deploy").rglob("*.md")])
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
ROOMS = ("orchestrator", "actors", "learner", "rewards", "deploy", "tests", "docs")
WORDS_OF_A_SHELL = {">", "<", "|", "&&", ";", "||"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def blocks(text: str) -> tuple[str, list[str]]:
    """(the text without code blocks, the code blocks)."""
    pieces = re.split(r"^```.*$", text, flags=re.MULTILINE)
    return "\n".join(pieces[::2]), pieces[1::2]


def headings(page: Path) -> set[str]:
    prose, _ = blocks(page.read_text(encoding="utf-8"))
    return {anchor(title) for title in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


def commands(text: str) -> Iterator[list[str]]:
    """Words of every shell command in the code blocks, without variables set before it and the program's folder."""
    for block in blocks(text)[1]:
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # prose or output with an apostrophe
                continue
            end = next((at for at, word in enumerate(words) if word in WORDS_OF_A_SHELL), len(words))
            words = words[words.index("--") + 1 : end] if "--" in words[:end] else words[:end]  # of a submitted job
            while words and re.match(r"^\w+=", words[0]):
                words = words[1:]
            if words:
                yield [Path(words[0]).name, *words[1:]]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    prose, _ = blocks(page.read_text(encoding="utf-8"))
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        place, _, heading = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (heading and heading not in headings(target)):
            dead.append(link)
    assert dead == []


@every_page
def test_files_that_are_named_are_there(page: Path) -> None:
    prose, _ = blocks(page.read_text(encoding="utf-8"))
    named = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", prose)
    missing = [name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()]
    assert missing == []


@every_page
def test_commands_take_what_they_are_given(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= TARGETS, words
        if words[0] in ("python", "python3") and words[1:3] == ["-m", "orchestrator"]:
            words = ["mi-epo", *words[3:]]
        if words[0] != "mi-epo":
            continue
        arguments = parse_arguments(words[1:])  # exits where an option is unknown
        recipe = getattr(arguments, "recipe", None)
        if recipe and recipe.startswith("deploy/") and not recipe.endswith("short.yaml"):
            assert (REPOSITORY / recipe).is_file(), words
