"""Races: who is fast enough where it counts, what is refused, and what the page shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from boardkit import board, made, posted
from tiny import run, spec

from ddbench.base.cache import read_json, write_json
from ddbench.boards.board import Board
from ddbench.boards.entry import pack
from ddbench.boards.places import found
from ddbench.boards.race import WALL
from ddbench.boards.ranking import board_text, build, overview, stale, standings
from ddbench.boards.site import site
from ddbench.boards.submit import submit
from ddbench.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
RULES = """
[race]
targets = [0.5, 0.6]
counts = ["Everything."]
does_not_count = ["Nothing."]
free = ["protocol.checks", "protocol.lrs", "dataset.noise"]
[[race.earlier]]
date = "2025-12-31"
method = "by hand"
seconds = 99
accuracy = 0.4
std = 0.01
hardware = "An abacus"
where = "a/record.json"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("runs"), seeds=(0,))[0]


def race(root: Path, folder: Path, text: str = RULES, **rules) -> Board:
    """A board of these runs, with a race."""
    path = board(root, folder, **rules).folder / "board.toml"
    path.write_text(path.read_text() + text)
    return Board.load(path.parent)


def entry(
    board: Board, folder: Path, name: str, accuracies: list[float | None], seconds: list[float], **about: str
) -> Path:
    """An entry with these seconds in all, seed by seed; ``hardware`` is its device."""
    hardware = about.pop("hardware", "One GPU")
    held = posted(board, folder, name, accuracies, **about)
    for own, took in zip(held["runs"], seconds, strict=True):
        own["wall_seconds"] = took
        own["result"]["machine"]["device"] = hardware
    path = board.folder / "entries" / f"{name}.json"
    write_json(path, held)
    return path


def section(text: str, title: str) -> list[str]:
    """The method of each line of a table under a heading."""
    part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [line for line in part.splitlines() if line.startswith("| ")][2:]


def test_a_race_ranks_by_seconds_those_that_reach_an_accuracy(tmp_path, folder):
    rules = race(tmp_path, folder)
    entry(rules, folder, "fast", [0.52, 0.54], [30.0, 40.0], matcher="dm")
    entry(rules, folder, "good", [0.64, 0.66], [100.0, 120.0], matcher="k-means")
    entry(rules, folder, "poor", [0.30, 0.30], [1.0, 1.0], matcher="dsa")
    text = board_text(standings(rules))
    low, high = section(text, "At least 50 %"), section(text, "At least 60 %")
    assert [line.split(" | ")[:3] for line in low] == [["| 1", "dm", "35 ± 7"], ["| 2", "k-means", "110 ± 14"]]
    assert [line.split(" | ")[:3] for line in high] == [["| 1", "k-means", "110 ± 14"]]
    assert [line.split(" | ")[1] for line in section(text, "History")] == ["by hand", "dm", "dsa", "k-means"]
    assert "- Everything." in text
    assert "a/record.json" in text
    assert "| at least 60 % | 1 | k-means | 110 ± 14 |" in overview([standings(rules)])
    pages = site([standings(rules)])
    assert "at least 60 %: k-means, 110 ± 14 s" in pages["index.html"]
    assert "At least 50 %: ranked by seconds" in pages["toys.html"]


def test_ranks_are_among_entries_of_the_same_hardware_and_a_seed_that_diverged_ranks_nobody(tmp_path, folder):
    rules = race(tmp_path, folder)
    entry(rules, folder, "a", [0.52, 0.54], [30.0, 30.0], matcher="dm", hardware="Fast GPU")
    entry(rules, folder, "b", [0.52, 0.54], [50.0, 50.0], matcher="k-means", hardware="Slow GPU")
    entry(rules, folder, "c", [0.52, 0.54], [40.0, 40.0], matcher="dsa", hardware="Fast GPU")
    held = json.loads((rules.folder / "entries" / "c.json").read_text())
    entry(rules, folder, "d", [0.9, None], [1.0, 1.0], matcher="dc")
    diverged = json.loads((rules.folder / "entries" / "d.json").read_text())
    del diverged["runs"][1]["wall_seconds"]
    write_json(rules.folder / "entries" / "d.json", diverged)
    assert held["runs"][0]["wall_seconds"] == 40.0
    low = section(board_text(standings(rules)), "At least 50 %")
    assert [line.split(" | ")[:2] for line in low] == [["| 1", "dm"], ["| 2", "dsa"], ["| 1", "k-means"]]


def test_without_its_seconds_or_with_warm_caches_nothing_is_entered(tmp_path, folder):
    rules = race(tmp_path, folder, seeds=[0])
    with pytest.raises(UsageError, match=r"has no wall\.json"):
        rules.check([pack(folder)])
    path = entry(rules, folder, "a", [0.5], [10.0])
    held = json.loads(path.read_text())
    held["runs"][0]["result"]["expert_seconds"] = 10.5
    write_json(path, held)
    with pytest.raises(DataError, match="something was cached"):
        rules.entries()
    held["runs"][0]["result"]["expert_seconds"] = 1.0
    write_json(path, held)
    assert len(rules.entries()) == 1


def test_what_is_free_may_differ_and_nothing_else(tmp_path, folder):
    rules = race(tmp_path, folder, seeds=[0])
    for name, options, allowed in (
        ("checks", {"protocol.checks": 1, "protocol.lrs": "0.01,0.03"}, True),
        ("steps", {"protocol.steps": 13}, False),
        ("momentum", {"protocol.momentum": 0.8}, False),
    ):
        other = run(tmp_path / name, spec("random", **options), students=2)
        write_json(other / WALL, {"seconds": 1000.0})
        if allowed:
            (path,) = submit([other], rules, replace=False)
            assert read_json(path)["runs"][0]["wall_seconds"] == 1000.0
            assert len(rules.entries()) == 1
        else:
            with pytest.raises(UsageError, match="follows protocol"):
                submit([other], rules, replace=False)


def test_data_under_a_free_option_are_those_that_the_race_names(tmp_path, folder):
    other = run(tmp_path / "noisy", spec("random", **{"dataset.noise": 0.5}), students=2)
    write_json(other / WALL, {"seconds": 1000.0})
    with pytest.raises(UsageError, match="is of dataset"):
        submit([other], race(tmp_path / "a", folder, seeds=[0]), replace=False)
    digest = read_json(other / "result.json")["dataset"]["digest"]
    named = RULES.replace("free =", f'data = ["{digest}"]\nfree =')
    assert submit([other], race(tmp_path / "b", folder, named, seeds=[0]), replace=False)
    bound = named.replace(', "dataset.noise"', "")
    with pytest.raises(UsageError, match="prepares the data in another way"):
        submit([other], race(tmp_path / "c", folder, bound, seeds=[0]), replace=False)


@pytest.mark.parametrize(
    "wrong", ["targets = []", "targets = [1.5]", "targets = ['x']", "targets = [0.5]\nno_such_rule = 1"]
)
def test_rules_of_a_race_that_are_none_are_refused(tmp_path, folder, wrong):
    with pytest.raises(DataError, match="race"):
        race(tmp_path, folder, f"[race]\n{wrong}\n")


def test_a_run_elsewhere_records_no_seconds_in_all(folder):
    assert "wall_seconds" not in pack(folder).json_value()


# -- the races of this repository ------------------------------------------------------------------------------


def test_the_line_to_beat_is_what_its_record_says():
    rules = Board.load(ROOT / "leaderboards" / "speedrun")
    (line,) = rules.race.earlier
    (seen,) = [run for run in read_json(ROOT / line.where)["runs"] if abs(run["accuracy_mean"] - line.accuracy) < 1e-6]
    assert f"{line.seconds:.0f} s from unpacking JPEGs to five graded students" in seen["note"]
    assert (seen["device"], round(seen["accuracy_std"], 4)) == (line.hardware, line.std)
    assert line.accuracy < min(rules.race.targets)


@pytest.mark.parametrize("name", ["speedrun", "speedrun-cpu"])
def test_what_a_race_runs_keeps_to_its_rules(name, monkeypatch):
    from ddbench.base.options import label, options
    from ddbench.suite.grid import read

    monkeypatch.setenv("DDBENCH_CIFAR10_ZIP", "/data/images.zip")
    rules = Board.load(ROOT / "leaderboards" / name)
    suite = read(ROOT / "leaderboards" / name / "suite.toml", device="cpu")
    assert suite.students == rules.students
    assert {cell.spec.seed for cell in suite.cells} == {*rules.seeds}
    for cell in suite.cells:
        assert rules.race.allows(rules.rules, options(cell.spec.protocol))
        assert label(cell.spec.network) == rules.network_label
        assert cell.spec.ipc in rules.ipc
        assert cell.spec.dataset.limit == rules.dataset.options.get("limit")


def test_the_pages_of_the_races_are_those_of_their_entries():
    root = ROOT / "leaderboards"
    every = found((), root)
    assert {"speedrun", "speedrun-cpu"} <= {one.name for one in every}
    assert stale(build(every, root, every)) == [], "run `ddbench leaderboard build`"
