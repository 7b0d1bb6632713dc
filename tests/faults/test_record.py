"""Counts of a campaign: nothing is lost on the way to the table, and the page shows the record's."""

from __future__ import annotations

import re
from pathlib import Path

from ddbench.testing.faults.record import Record, Trial

ROOT = Path(__file__).parents[2]
PAGE, RECORD = ROOT / "docs" / "reliability.md", ROOT / "docs" / "results" / "faults.jsonl"


def example() -> Record:
    record = Record({"seed": 3})
    record.add(0, Trial("kills", "tesla/pdd", "identical", 4))
    record.add(1, Trial("kills", "dm/pdd", "identical", 2))
    record.add(2, Trial("kills", "dm/pdd", "wrong", 1, "another set"))
    record.add(0, Trial("flips", "home/experts", "healed"))
    record.add(1, Trial("flips", "home/experts", "refused"))
    record.add(0, Trial("hostile", "boards", "harmless"))
    return record


def test_counts_are_of_faults_by_part_and_verdict():
    record = example()
    assert record.faults("kills") == 7
    assert record.total("kills") == {"trials": 3, "identical": 6, "wrong": 1}
    assert record.total("flips") == {"trials": 2, "healed": 1, "refused": 1}
    assert record.faults("full") == 0


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "record.jsonl"
    example().save(path)
    assert Record.load(path) == example()


def test_a_wrong_trial_is_named_so_that_it_can_be_repeated():
    assert example().wrong == [{"part": "kills", "trial": 2, "what": "dm/pdd", "note": "another set"}]


def test_the_table_adds_up():
    kills = next(line for line in example().table().splitlines() if "SIGKILL" in line)
    assert [cell.strip() for cell in kills.strip("|").split("|")][1:] == ["7", "", "", "6", "", "1"]


def test_the_table_of_the_page_is_that_of_the_record():
    shown = re.search(r"(?<=<!-- faults: generated -->\n\n).*?(?=\n<!-- faults: end -->)", PAGE.read_text(), re.S)
    assert shown is not None
    assert shown.group() == Record.load(RECORD).table()


def test_the_record_is_small_and_its_wrong_outcomes_stand_on_the_page():
    assert RECORD.stat().st_size < 200_000
    record = Record.load(RECORD)
    assert sum(record.total(part)["wrong"] for part in ("kills", "flips", "full", "hostile")) == len(record.wrong)
    for wrong in record.wrong:
        assert f"{wrong['part']} {wrong['trial']}" in PAGE.read_text()
