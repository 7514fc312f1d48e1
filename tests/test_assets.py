"""Built folders: once, complete or absent, rebuilt when damaged or outdated."""

import json

import pytest

from orchestrator.errors import BadInput
from orchestrator.tasks.assets import build_once, code_digest, read_manifest


class Builder:
    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "data.txt").write_text("content")
        return {"calls": self.calls}


def make(directory, builder, settings=None, said=None):
    return build_once(directory, settings or {"seed": 0}, builder, progress=(said if said is not None else []).append)


def test_the_second_call_builds_nothing(tmp_path):
    builder = Builder()
    assert make(tmp_path / "a", builder) == make(tmp_path / "a", builder)
    assert builder.calls == 1
    assert read_manifest(tmp_path / "a")["report"] == {"calls": 1}


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_a_damaged_file_is_named_and_the_folder_built_again(tmp_path, harm):
    said: list[str] = []
    builder = Builder()
    make(tmp_path / "a", builder)
    file = tmp_path / "a" / "sub" / "data.txt"
    file.write_text("other") if harm == "changed" else file.unlink()
    make(tmp_path / "a", builder, said=said)
    assert builder.calls == 2
    assert file.read_text() == "content"
    assert "sub/data.txt" in said[0]


def test_other_settings_mean_another_build(tmp_path):
    builder = Builder()
    make(tmp_path / "a", builder, {"seed": 0})
    make(tmp_path / "a", builder, {"seed": 1})
    assert builder.calls == 2
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"] == {"seed": 1}


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        make(tmp_path / "a", fail)
    assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


def test_a_folder_that_no_build_made_is_never_removed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").touch()
    with pytest.raises(BadInput, match=r"holds files but no manifest\.json"):
        make(tmp_path / "a", Builder())
    assert (tmp_path / "a" / "thesis.txt").exists()


def test_other_code_means_other_settings():
    assert code_digest("miniature") == code_digest("miniature")
    assert len({code_digest("miniature"), code_digest("fitting"), code_digest("miniature", "fitting")}) == 3
