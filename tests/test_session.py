"""The folder of a local cluster's session: short enough for its sockets, wherever temporary files go."""

import os

import pytest

from orchestrator.cluster import session
from orchestrator.cluster.connection import refusals, this_machine
from orchestrator.cluster.session import session_root, shorten
from orchestrator.recipes import load_recipe
from tests.test_paths import MINIATURE


@pytest.fixture(autouse=True)
def no_folder_is_asked_for(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_gives_way_to_a_short_one(monkeypatch, tmp_path, variable):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    assert session_root() == "/tmp"


def test_processes_are_given_the_short_folder_where_their_own_sockets_would_not_fit(monkeypatch):
    for length, given in ((75, "/tmp"), (76, "/tmp"), (20, "/tmp/".ljust(20, "x"))):
        folder = "/tmp/".ljust(length, "x")
        monkeypatch.setenv("TMPDIR", folder)
        environment = {"TMPDIR": folder}
        shorten(environment)
        assert environment == {"RAY_TMPDIR": given, "TMPDIR": "/tmp" if length > 75 else folder}


@pytest.mark.parametrize("length", [37, 38])
def test_the_longest_folder_leaves_room_for_the_longest_socket(monkeypatch, length):
    folder = "/tmp/".ljust(length, "x")
    monkeypatch.setenv("TMPDIR", folder)
    socket = f"{folder}/ray/session_2026-11-27_23-49-36_123456_4194304/sockets/plasma_store.1"
    assert (session_root() == folder) == (len(socket) <= 107)


@pytest.mark.parametrize("folder", ["relative", "", "/proc/none", "/dev/null"])
def test_a_folder_that_cannot_be_made_gives_way_too(monkeypatch, folder):
    monkeypatch.setenv("TMPDIR", folder)
    assert session_root() == "/tmp" or os.access("/proc", os.W_OK)


def test_where_no_folder_will_do_it_is_said_in_one_line_before_anything_starts(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/" + "x" * 90)
    monkeypatch.setattr(session, "SHORT", "/dev/null")
    recipe = load_recipe(MINIATURE)
    (said,) = refusals(recipe, this_machine(recipe))
    assert said.startswith("RAY_TMPDIR: must be a folder that can be written, of at most 37 bytes") and "\n" not in said
