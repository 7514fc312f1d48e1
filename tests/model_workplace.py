"""A recipe with a policy and a judge in folders of their own, for tests that break them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from tests.test_plan_and_cli import recipe_tree
from tests.tiny_models import make_tiny_classifier, make_tiny_policy


def make_workplace(folder: Path, **judge: Any) -> Path:
    """Write recipe.yaml, its data, `policy` and `judge` (the second objective's; `judge`: of its scorer section)."""
    make_tiny_policy(folder / "policy")
    make_tiny_classifier(folder / "judge")
    for name in ("train", "heldout"):
        lines = [json.dumps({"prompt": f"t{20 + i} t{30 + i}"}) + "\n" for i in range(8)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    tree = recipe_tree(folder)
    tree["objectives"][1]["scorer"] = {"type": "huggingface", "model": str(folder / "judge"), **judge}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder


def planned(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    """What `mi-epo plan` refuses the recipe with: one line, or nothing."""
    code = main(["plan", str(folder / "recipe.yaml"), *overrides])
    said = capsys.readouterr().err
    assert (code, said.count("\n"), "Traceback" in said) == ((2, 1, False) if said else (0, 0, False)), said
    return said


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
