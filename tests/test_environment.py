"""What the name of a model means, and what the processes that load it are told."""

from pathlib import Path

import pytest

from actors.config import RolloutConfig
from learner.config import LearnerConfig
from rewards.environment import local_folder, model_source, native_dtype, process_environment
from rewards.judge_sections import HuggingFaceScorerConfig


@pytest.mark.parametrize("model", ["./model", "../model", "/models/start", "~/model", "some/deep/folder"])
def test_a_path_is_a_folder_whether_it_is_there_or_not(model: str) -> None:
    assert local_folder(model) == Path(model).expanduser()


def test_a_name_with_one_slash_is_a_hub_id_unless_such_a_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/model") is None
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert local_folder("org/model") == Path("org/model")


def test_a_folder_at_home_is_found_by_loaders_and_keeps_its_process_off_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "HF_HUB_OFFLINE" not in process_environment("~/model", threads=None, num_gpus=1)
    (tmp_path / "model").mkdir()
    assert model_source("~/model") == str(tmp_path / "model")
    told = process_environment("~/model", threads=2, num_gpus=1)
    assert (told["HF_HUB_OFFLINE"], told["OMP_NUM_THREADS"]) == ("1", "2")


def test_a_process_sees_no_gpu_unless_one_was_reserved_and_then_those_that_ray_gives_it() -> None:
    assert process_environment(threads=1, num_gpus=0)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in process_environment(threads=1, num_gpus=0.5)


def test_loaders_are_given_other_names_as_they_are() -> None:
    assert (model_source("org/model"), model_source("./model")) == ("org/model", "./model")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("fpu avx512_bf16", "bfloat16"), ("fpu amx_bf16 amx_tile", "bfloat16"), ("fpu avx2 avx512f", "float32")],
)
def test_the_native_dtype_is_what_the_processor_multiplies(flags: str, dtype: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert native_dtype(tmp_path / "cpuinfo") == dtype
    assert native_dtype(tmp_path / "nothing") == "float32"


def test_a_recipe_that_says_native_says_afterwards_what_that_is_here() -> None:
    sections = (
        RolloutConfig.model_validate({"dtype": "native"}),
        LearnerConfig.model_validate({"dtype": "native"}),
        HuggingFaceScorerConfig.model_validate({"model": "m", "dtype": "native"}),
    )
    assert {section.dtype for section in sections} == {native_dtype()}
