"""Faults on purpose: a handful of each kind here, and a campaign of minutes where time allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddbench.testing.faults.__main__ import parts, tried
from ddbench.testing.faults.record import Record, Trial

FEW = {"kills": (11,), "flips": (12,), "full": (3,)}  # those whose undisturbed runs are small
MORE = {"kills": (18,), "flips": (4,), "full": (56,), "hostile": (0, 1, 2)}  # hostile files want a dozen sound runs


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    """All parts, in a folder of theirs."""
    folder = tmp_path_factory.mktemp("faults") / "work"
    return folder, parts(folder, 0, [("a page", page(folder.parent))])


def page(folder: Path) -> Path:
    """What a web server says instead of a set."""
    path = folder / "set.pt"
    path.write_text("<!DOCTYPE html>")
    return path


def each(numbers: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(name, number) for name, some in numbers.items() for number in some]


@pytest.mark.parametrize(
    ("name", "number"), [*each(FEW), *(pytest.param(*one, marks=pytest.mark.slow) for one in each(MORE))]
)
def test_a_fault_ends_as_it_should(at_work, name, number):
    folder, every = at_work
    trial = tried(every[name], name, number, folder)
    assert trial.part == name
    assert trial.verdict != "wrong", trial.note


def test_a_part_that_fails_is_wrong_and_not_the_end_of_the_campaign(tmp_path):
    class Broken:
        def trial(self, number: int) -> Trial:
            raise RuntimeError("it fails even undisturbed")

    (tmp_path / "kills" / "trial").mkdir(parents=True)
    trial = tried(Broken(), "kills", 3, tmp_path)
    assert trial.verdict == "wrong"
    assert "undisturbed" in trial.note
    assert (tmp_path / "wrong-kills-3").is_dir()


@pytest.mark.slow
def test_a_campaign_of_some_minutes_finds_nothing_wrong(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ddbench.testing.faults",
        "--minutes",
        "4",
        "--out",
        str(tmp_path / "record.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = Record.load(tmp_path / "record.jsonl")
    assert min(record.faults(part) for part in ("kills", "flips", "full", "hostile")) > 3
