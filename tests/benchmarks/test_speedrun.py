"""The speedrun's command: a run with empty caches, its clock, its tar, and its way into a board."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from boardkit import board, made

from ddbench.base.cache import read_json, write_json
from ddbench.boards.board import Board
from ddbench.boards.race import WALL
from ddbench.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def speedrun(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.speedrun

    return benchmarks.speedrun


def test_a_tar_with_its_seconds_becomes_an_entry_and_a_table(tmp_path, speedrun):
    (folder,) = made(tmp_path / "runs", seeds=(0,))
    rules = board(tmp_path / "boards", folder, seeds=[0]).folder
    path = rules / "board.toml"
    path.write_text(path.read_text() + "[race]\ntargets = [0.01]\n")

    def packed(name: str) -> Path:
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(folder, folder.name)
        return tmp_path / name

    with pytest.raises(UsageError, match=r"has no wall\.json"):
        speedrun.enter([packed("a.tar")], Board.load(rules))
    write_json(folder / WALL, {"seconds": 300.0})
    (entry,) = speedrun.enter([packed("b.tar")], Board.load(rules), author="Somebody")
    assert [run["wall_seconds"] for run in read_json(entry)["runs"]] == [300.0]
    assert "| 1 | random | 300 |" in (rules / "README.md").read_text()
    assert "Somebody" in (rules / "README.md").read_text()


@pytest.mark.slow
def test_a_run_begins_with_empty_caches_and_its_seconds_are_more_than_its_parts(tmp_path, speedrun, monkeypatch):
    import benchmarks.gpu
    from ddbench.suite.grid import read

    benchmarks.gpu._images(tmp_path / "images.zip")
    monkeypatch.setenv(speedrun.DATA, str(tmp_path / "images.zip"))
    (tmp_path / "suite.toml").write_text(speedrun.TINY.format(data=speedrun.DATA))
    suite = read(tmp_path / "suite.toml", device="cpu")
    for _ in range(2):  # the second finds nothing of the first
        tar, figures = speedrun.raced(suite.cells[0], suite, tmp_path / "out")
        with tarfile.open(tar) as archive:
            archive.extractall(tmp_path / "held", filter="data")
        (folder,) = (tmp_path / "held").iterdir()
        result = read_json(folder / "result.json")
        assert result["expert_seconds"] > 0
        parts = sum(result[f"{name}_seconds"] for name in ("expert", "distil", "selection"))
        assert read_json(folder / WALL) == {"seconds": figures["s"]}
        assert figures["s"] > parts
