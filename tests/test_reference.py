"""docs/reference.md is current, and tells of every key what it means."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from orchestrator.bench.reference import recipe_page, sections
from orchestrator.bench.tables import as_markdown
from orchestrator.config import Recipe
from orchestrator.tasks.fitting.config import PolicyFitConfig, RewardFitConfig
from rewards.section import Section

REPOSITORY = Path(__file__).parents[1]


class Sweet(Section):
    type: Literal["sweet"] = "sweet"
    sugar: float = Field(default=0.5, ge=0, lt=1)
    """Share of it."""


class Salty(Section):
    type: Literal["salty"]


class Cake(Section):
    name: str
    """What it is called."""
    shape: Literal["round", "square"] | None = None
    """How it looks."""
    layers: tuple[Sweet | Salty, ...] = ()
    """From below."""
    top: Sweet = Sweet()
    """Above them."""


def test_the_reference_in_docs_is_current() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == recipe_page(), "python -m orchestrator.bench.reference > docs/reference.md"


@pytest.mark.parametrize("model", [Recipe, PolicyFitConfig, RewardFitConfig])
def test_every_key_has_a_meaning(model: type[Section]) -> None:
    silent = [
        f"{title}: {key}" for title, rows in sections(model, "top", {}) for key, _, _, meaning in rows if not meaning
    ]
    assert silent == []


def test_keys_are_told_with_type_bounds_and_default_and_each_section_once() -> None:
    top, sweet, salty = sections(Cake, "Cake", {})
    where = "[layers[], type sweet](#layers-type-sweet)"
    assert top == (
        "Cake",
        [
            ["`name`", "text", "**required**", "What it is called."],
            ["`shape`", "one of `round`, `square` or null", "`null`", "How it looks."],
            [
                "`layers`",
                "list of sections",
                "`[]`",
                f"From below. See {where}, [layers[], type salty](#layers-type-salty).",
            ],
            ["`top`", "section", "", f"Above them. See {where}."],
        ],
    )
    assert sweet == ("layers[], type sweet", [["`sugar`", "number ≥ 0 and < 1", "`0.5`", "Share of it."]])
    assert salty == ("layers[], type salty", [])


def test_a_bar_in_a_text_does_not_end_a_cell() -> None:
    assert as_markdown([["key"], ["p(y|x)"]]).splitlines() == ["| key |", "| --- |", r"| p(y\|x) |"]
