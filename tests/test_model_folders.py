"""What is wrong with a model folder is one line before anything of it is loaded, and nothing in it is ever run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from rewards.model_files import ModelError
from rewards.pretrained import load_config, load_model, load_tokenizer
from tests.model_workplace import change_json, make_workplace, planned

CODE = "import pathlib\npathlib.Path(__file__).with_name('was-run').touch()\nclass Own: pass\n"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    return make_workplace(tmp_path)


def test_the_folders_that_all_these_are_changes_of_are_good(capsys, workplace):
    assert planned(capsys, workplace) == ""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions put to whoever sits at the terminal, who would say yes."""
    questions: list[str] = []

    def say_yes(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", say_yes)
    return questions


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-2] + ', "vocab_size": 7}', "the key 'vocab_size' must stand once, stands 2 times"),
        (lambda text: "\ufeff" + text, "is not valid JSON: Unexpected UTF-8 BOM"),
    ],
)
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_configuration_that_can_be_read_in_two_ways_is_refused(capsys, workplace, model, change, said):
    file = workplace / model / "config.json"
    file.write_text(change(file.read_text()))
    assert f"{file}: is not valid JSON: " in (line := planned(capsys, workplace)) and said in line


def name_code(folder: Path, file: str) -> None:
    """Make a file of the folder name code beside it as its own, as a model of unknown classes does."""
    (folder / "own.py").write_text(CODE)
    kind = {"config.json": "AutoConfig", "tokenizer_config.json": "AutoTokenizer"}[file]
    own: Any = ["own.Own", None] if kind == "AutoTokenizer" else "own.Own"
    change_json(folder / file, auto_map={kind: own}, tokenizer_class="OwnTokenizer", model_type="own")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("model", "place"), [("policy", "policy.model"), ("judge", "objectives.1.scorer.model")])
def test_code_in_a_model_folder_is_refused_and_neither_run_nor_asked_about(
    capsys, workplace, asked, file, model, place
):
    name_code(workplace / model, file)
    said = planned(capsys, workplace)
    assert said.startswith(f"mi-epo: {place}: {workplace / model / file}: must name no code, which is never run here")
    loads: list[Callable[[str], Any]] = [load_tokenizer, load_config]
    loads += [lambda name: load_model("AutoModelForCausalLM", name, head="whole")]
    for load in loads:
        with pytest.raises(ModelError, match="must name no code"):
            load(str(workplace / model))
    assert asked == [] and not (workplace / model / "was-run").exists()


@pytest.mark.parametrize("command", ["fit-policy", "fit-reward"])
@pytest.mark.parametrize(("file", "place"), [("config.json", "model"), ("tokenizer_config.json", "tokenizer")])
def test_a_fit_from_a_folder_with_code_is_refused_too(capsys, workplace, asked, command, file, place):
    name_code(workplace / "policy", file)
    row = {"prompt": "t20", "response": "t21", "chosen": "t22", "rejected": "t23"}
    (workplace / "rows.jsonl").write_text(json.dumps(row) + "\n")
    fit = {
        **{"data": str(workplace / "rows.jsonl"), "output": str(workplace / "out"), "heldout_fraction": 0},
        **{"model": str(workplace / "policy"), "tokenizer": str(workplace / "judge") if place == "model" else None},
        "optimization": {"steps": 1, "batch_size": 1, "learning_rate": 0.1},
    }
    (workplace / "fit.yaml").write_text(yaml.safe_dump(fit))
    assert main([command, str(workplace / "fit.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"mi-epo: {place}: {workplace / 'policy' / file}: must name no code" in said
    assert asked == [] and not (workplace / "policy" / "was-run").exists() and not (workplace / "out").exists()


def test_answers_of_a_policy_with_code_are_refused(capsys, workplace, asked):
    name_code(workplace / "policy", "tokenizer_config.json")
    steered = {"objectives": ["a", "b"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0}
    (workplace / "policy" / "mi_epo.json").write_text(json.dumps(steered))
    arguments = ["--prefer", "a=1", "--prefer", "b=0", "--prompt", "t20"]
    assert main(["generate", str(workplace / "policy"), *arguments]) == 2
    assert "must name no code" in capsys.readouterr().err and asked == []


def test_a_kernel_that_a_folder_wants_from_a_hub_is_refused(capsys, workplace):
    change_json(workplace / "policy" / "config.json", attn_implementation="somebody/attention")
    assert "attn_implementation must be no kernel of a hub" in planned(capsys, workplace)


def in_shards(folder: Path) -> list[Path]:
    """Cut model.safetensors in two, with an index."""
    from safetensors.torch import load_file, save_file

    tensors = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, part in enumerate((tensors[:9], tensors[9:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(dict(part), folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(dict(part), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sorted(folder.glob("model-*.safetensors"))


def test_the_index_decides_which_files_are_the_model(capsys, workplace):
    from actors.adapters import tensor_files
    from learner.soup import SoupSource
    from orchestrator.estimate.shapes import count_parameters

    policy = workplace / "policy"
    names, parameters = set(tensor_files(policy)), count_parameters(policy)
    shards = in_shards(policy)
    shutil.copy(shards[0], policy / "consolidated.safetensors")
    shutil.copy(shards[0], policy / "training_state.safetensors")
    assert planned(capsys, workplace) == ""
    assert count_parameters(policy) == parameters == 113_216
    assert set(tensor_files(policy)) == names and len(names) == 20
    assert {spec.name for spec in SoupSource([policy], bucket_bytes=1 << 20).specs} == names
    load_model("AutoModelForCausalLM", str(policy), head="whole")


def test_files_beside_a_policy_without_an_index_are_refused_because_engines_would_read_them(capsys, workplace):
    shutil.copy(workplace / "policy" / "model.safetensors", workplace / "policy" / "consolidated.safetensors")
    shutil.copy(workplace / "judge" / "model.safetensors", workplace / "judge" / "consolidated.safetensors")
    said = planned(capsys, workplace)
    assert "policy: must hold model.safetensors alone or an index" in said and "got consolidated.safetensors" in said


BROKEN_INDEX: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard that is not there": (lambda folder: in_shards(folder)[1].unlink(), "must name files of its folder, got"),
    "a shard that is elsewhere": (
        lambda folder: change_json(
            folder / "model.safetensors.index.json", weight_map={"norm": "../judge/model.safetensors"}
        ),
        "must name files of its folder, got '../judge/model.safetensors'",
    ),
    "a shard of a name that no file can have": (
        lambda folder: change_json(folder / "model.safetensors.index.json", weight_map={"norm": "x" * 300}),
        "must name files of its folder, got 'xxx",
    ),
    "an index of nothing": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "must hold a weight_map of tensor names and files",
    ),
    "an index cut short": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {'),
        "is not valid JSON",
    ),
    "a tensor in another shard than the index says": (
        lambda folder: shutil.copy(in_shards(folder)[0], folder / "model-00002-of-00002.safetensors"),
        "as model.safetensors.index.json says",
    ),
    "the whole model beside an index of shards": (
        lambda folder: in_shards(folder) and shutil.copy(folder.parent / "whole", folder / "model.safetensors"),
        "must hold model.safetensors or an index of other files, got both",
    ),
}


@pytest.mark.parametrize("case", BROKEN_INDEX)
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_an_index_that_does_not_fit_its_folder_is_refused(capsys, workplace, model, case):
    shutil.copy(workplace / model / "model.safetensors", workplace / "whole")
    in_shards(workplace / model)
    shutil.copy(workplace / "whole", workplace / model / "model.safetensors")
    for shard in (workplace / model).glob("model-*"):
        shard.unlink()
    if "elsewhere" in case or "name" in case or "index" in case.split()[:2]:
        (workplace / model / "model.safetensors").unlink()
        (workplace / model / "model.safetensors.index.json").write_text("{}")
    break_it, rule = BROKEN_INDEX[case]
    break_it(workplace / model)
    said = planned(capsys, workplace)
    assert rule in said and str(workplace / model) in said


def header(text: bytes, *, length: int | None = None, data: bytes = b"") -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 16060522912\n"
NOT_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "a Git LFS pointer": (POINTER, "is a Git LFS pointer, not the file itself (`git lfs pull`"),
    "nothing": (b"", "is no safetensors file, or cut short (0 bytes)"),
    "a few bytes": (b"\x10", "is no safetensors file, or cut short (1 bytes)"),
    "a header of exabytes": (b"\xff" * 64, "is no safetensors file, or cut short (64 bytes)"),
    "a header longer than its file": (header(b"{}", length=100), "is no safetensors file, or cut short (10 bytes)"),
    "a header that is no JSON": (header(b"<html>"), "its header is no JSON"),
    "a header of a hundred thousand brackets": (header(b"[" * 100_000), "is no safetensors file"),
    "a header that is a list": (header(b"[1]"), "its header describes no tensors"),
    "a tensor without a shape": (header(b'{"x": {"dtype": "F32"}}'), "its header describes no tensors"),
    "a tensor beyond the end": (
        header(b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', data=b"1234"),
        "is cut short or damaged: x of shape (4,) must lie within 4 bytes, got 0 to 16",
    ),
    "a tensor that is larger than its bytes": (
        header(b'{"x": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4]}}', data=b"1234"),
        "is cut short or damaged",
    ),
}


@pytest.mark.parametrize("case", NOT_WEIGHTS)
@pytest.mark.parametrize(("model", "place"), [("policy", "policy.model"), ("judge", "objectives.1.scorer.model")])
def test_a_file_that_holds_no_weights_is_refused_by_its_name(capsys, workplace, model, place, case):
    content, rule = NOT_WEIGHTS[case]
    (workplace / model / "model.safetensors").write_bytes(content)
    said = planned(capsys, workplace)
    assert said.startswith(f"mi-epo: {place}: {workplace / model / 'model.safetensors'}: ") and rule in said


@pytest.mark.parametrize("case", ["a Git LFS pointer", "a header of exabytes", "a tensor beyond the end"])
def test_whoever_loads_such_a_file_is_told_the_same(workplace, case):
    content, rule = NOT_WEIGHTS[case]
    (workplace / "policy" / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as refused:
        load_model("AutoModelForCausalLM", str(workplace / "policy"), head="whole")
    assert rule in str(refused.value)


def test_a_download_that_stopped_half_way_is_refused(capsys, workplace):
    file = workplace / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors: is cut short or damaged" in planned(capsys, workplace)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json", "pytorch_model.bin"]
)
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_pointer_in_the_place_of_another_file_is_refused(capsys, workplace, model, name):
    (workplace / model / name).write_bytes(POINTER)
    if name == "pytorch_model.bin":
        (workplace / model / "model.safetensors").unlink()
    assert f"{workplace / model / name}: is a Git LFS pointer" in planned(capsys, workplace)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_byte_order_mark_is_refused_because_loaders_do(capsys, workplace, model, name):
    file = workplace / model / name
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert f"{file}: is not valid JSON: Unexpected UTF-8 BOM" in planned(capsys, workplace)


QUANTISED = {"quant_method": "gptq", "bits": 4}
NOT_LOADED: dict[str, tuple[dict[str, Any], str]] = {
    "an encoder with a decoder": ({"model_type": "t5"}, "Unrecognized configuration class"),
    "another architecture": ({"model_type": "bert"}, "holds no trained weights for bert.embeddings"),
    "an architecture without layers of attention": ({"model_type": "mamba"}, "holds no trained weights for backbone"),
    "an architecture that nobody knows": ({"model_type": "nosuch"}, "has model type `nosuch`"),
    "a size that is none": ({"hidden_size": None}, "hidden_size must be a whole number of at least 1, got None"),
    "no architecture": ({"model_type": None}, "cannot be loaded"),
    "weights of an unknown dtype": ({"dtype": "nosuch"}, "has no attribute 'nosuch'"),
    "an unknown activation": ({"hidden_act": "nosuch"}, "cannot be loaded: KeyError: 'nosuch'"),
    "an unknown position embedding": ({"rope_parameters": {"rope_type": "nosuch", "rope_theta": 1e4}}, "nosuch"),
    "quantised weights": ({"quantization_config": QUANTISED}, "gptq"),
    "a padding that no row is for": ({"pad_token_id": 100}, "pad_token_id must be below 100, the rows of the embedd"),
}


@pytest.mark.parametrize("case", NOT_LOADED)
def test_a_policy_that_no_loader_would_take_is_refused_by_plan(capsys, workplace, case):
    changes, rule = NOT_LOADED[case]
    change_json(workplace / "policy" / "config.json", **changes)
    said = planned(capsys, workplace)
    assert said.startswith("mi-epo: policy.model: ") and rule in said


@pytest.mark.parametrize("case", [case for case in NOT_LOADED if "encoder" not in case and "quantised" not in case])
def test_so_is_a_judge(capsys, workplace, case):
    changes, rule = NOT_LOADED[case]
    change_json(workplace / "judge" / "config.json", **changes)
    said = planned(capsys, workplace)
    assert said.startswith("mi-epo: objectives.1.scorer.model: ")
    assert rule.removesuffix(" for backbone") in said or "Unrecognized configuration class" in said


@pytest.mark.parametrize("model", ["policy", "judge"])
def test_a_folder_without_weights_is_refused(capsys, workplace, model):
    (workplace / model / "model.safetensors").unlink()
    assert f"{workplace / model}: holds no weights (no model.safetensors" in planned(capsys, workplace)
