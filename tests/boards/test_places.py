"""Boards by their names: those here, those at a path, and those that come with ddbench."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import ddbench

from ddbench.base import shipped as kept
from ddbench.base.shipped import shipped
from ddbench.boards import places
from ddbench.boards.board import Board
from ddbench.cli.main import cli
from ddbench.errors import UsageError

OURS = ["cifar10-jpeg-mini", "digits", "digits-larger", "mnist-mini", "speedrun", "speedrun-cpu"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder that is no checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_board_that_comes_with_ddbench_is_found_by_its_name(elsewhere):
    assert places.folder("digits") == shipped("leaderboards") / "digits"
    assert [board.name for board in places.found((), places.HERE)] == OURS
    assert [board.name for board in places.found(("digits",), places.HERE)] == ["digits"]
    rows = ddbench("compare", "--board", "digits", "--where", "ipc=50,matcher=k-means", "--json").json
    assert [(row["matcher"], row["n"]) for row in rows] == [("k-means", 3)]


def test_a_board_of_ones_own_comes_before_one_of_the_same_name(elsewhere):
    for place in ("leaderboards/digits", "other/digits"):
        Path(place).mkdir(parents=True)
        shutil.copy(shipped("leaderboards") / "digits" / "board.toml", place)
    assert places.folder("digits") == elsewhere / "leaderboards" / "digits"
    assert places.folder("other/digits") == elsewhere / "other" / "digits"
    assert places.folder("digits", Path("other")) == elsewhere / "other" / "digits"
    assert [board.name for board in places.found((), places.HERE)] == ["digits"]
    assert [board.name for board in places.every(places.HERE)] == OURS
    assert places.every(places.HERE)[1].size == 0


def test_a_name_that_no_board_has_is_an_error_with_the_nearest(elsewhere):
    with pytest.raises(UsageError, match=r"there is no board 'digit' .* did you mean 'digits'\? \(there are cifar10-"):
        places.folder("digit")
    with pytest.raises(UsageError, match="there are no boards in mine"):
        places.found((), Path("mine"))


def test_an_entry_for_a_board_that_comes_with_ddbench_goes_to_the_folder_here(elsewhere, monkeypatch):
    board = places.writable("digits", places.HERE)
    theirs = shipped("leaderboards") / "digits"
    rules = theirs / "board.toml"
    assert board.folder == Path("leaderboards/digits")
    assert (board.folder / "board.toml").read_bytes() == rules.read_bytes()
    held = [entry.name for entry in Board.load(theirs).entries()]
    assert (board.size, [entry.name for entry in board.entries()]) == (len(held), held)
    answer = ddbench("compare", "--board", "digits", "--where", "ipc=1,matcher=mtt", "--json")
    assert [len(row["seeds"]) for row in answer.json] == [5]
    assert places.writable("digits", places.HERE).folder == elsewhere / "leaderboards" / "digits"
    monkeypatch.chdir(shipped("leaderboards").parent)  # in a checkout they are one's own
    assert places.writable("digits", places.HERE).folder == rules.parent
    assert list(elsewhere.iterdir()) == [elsewhere / "leaderboards"]


def test_an_entry_that_is_refused_leaves_no_copy_of_the_board(elsewhere):
    """A copy would stand before the board that comes with ddbench, and grow old."""

    def refuse() -> None:
        with places.entered("digits", places.HERE) as board:
            assert (board.folder / "board.toml").exists()
            raise UsageError("refused")

    with pytest.raises(UsageError, match="refused"):
        refuse()
    assert not list(elsewhere.iterdir())
    assert places.folder("digits") == shipped("leaderboards") / "digits"


def test_a_board_without_entries_is_said(elsewhere):
    (elsewhere / "leaderboards" / "digits").mkdir(parents=True)
    rules = (shipped("leaderboards") / "digits" / "board.toml").read_bytes()
    (elsewhere / "leaderboards" / "digits" / "board.toml").write_bytes(rules)
    answer = ddbench("compare", "--board", "digits")
    assert f"the board in {elsewhere / 'leaderboards' / 'digits'} has no entries yet" in answer.err


def test_an_installed_package_holds_them_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PACKAGE", tmp_path / "ddbench")
    assert shipped("examples") == tmp_path / "examples"
    (tmp_path / "ddbench" / "shipped" / "examples").mkdir(parents=True)
    assert shipped("examples") == tmp_path / "ddbench" / "shipped" / "examples"


@pytest.mark.parametrize("group", ["board", "leaderboard"])
def test_boards_are_listed_by_either_name(elsewhere, group):
    rows = ddbench(group, "list", "--json").json
    assert [row["board"] for row in rows] == OURS
    assert (rows[1]["dataset"], rows[1]["ipc"], rows[1]["entries"]) == (
        "digits",
        "1, 10, 50",
        places.every(places.HERE)[1].size,
    )
    answer = ddbench(group, "list")
    assert "Digits, 8x8" in answer.out
    assert "by name: `ddbench compare --board cifar10-jpeg-mini`" in answer.err
    assert cli.commands["board"] is cli.commands["leaderboard"]
