"""The speedrun's command: a run with empty caches, its clock, its tar, and its way into a board."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from boardkit import board, made

from ddbench.base.cache import read_json, write_json
from ddbench.boards.board import Board
from ddbench.boards.race import WALL

ROOT = Path(__file__).parents[2]


@pytest.fixture
def speedrun(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.speedrun

    return benchmarks.speedrun


def test_tars_of_all_seeds_become_an_entry_and_a_table(tmp_path, speedrun):
    runs = made(tmp_path / "runs")
    rules = board(tmp_path / "boards", runs[0]).folder
    path = rules / "board.toml"
    path.write_text(path.read_text() + "[race]\ntargets = [0.01]\n")
    tars = []
    for folder, seconds in zip(runs, (300.0, 310.0), strict=True):
        write_json(folder / WALL, {"seconds": seconds})
        tars.append(tmp_path / f"{folder.name}.tar")
        with tarfile.open(tars[-1], "w") as archive:
            archive.add(folder, folder.name)
    with pytest.raises(speedrun.submit.__globals__["UsageError"], match="lacks seed 1"):
        speedrun.enter(tars[:1], Board.load(rules))
    (entry,) = speedrun.enter(tars, Board.load(rules), author="Somebody")
    assert [run["wall_seconds"] for run in read_json(entry)["runs"]] == [300.0, 310.0]
    assert "| 1 | random | 305 ± 7 |" in (rules / "README.md").read_text()
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
