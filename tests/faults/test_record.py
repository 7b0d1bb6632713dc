"""Counts of a campaign: nothing is lost on the way to the table, and the page shows the record's."""

from __future__ import annotations

from pathlib import Path

from ddbench.testing.faults.record import BEGIN, END, PARTS, Record, Trial

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


def test_a_page_gets_the_table_between_its_marks_and_keeps_all_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n\nold\n{END}\nafter\n")
    record = example()
    record.about |= {"minutes": 1, "jobs": 2, "system": "Linux", "ddbench": "1", "torch": "2", "python": "3"}
    for _ in range(2):
        record.onto(page)
        assert page.read_text() == f"before\n{BEGIN}\n\n{record.text()}\n{END}\nafter\n"
    assert record.table() in page.read_text()
    assert "- kills 2, dm/pdd: `another set`\n" in page.read_text()


def test_the_page_shows_the_record():
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown == f"\n\n{Record.load(RECORD).text()}\n"


def test_the_record_is_small_and_counts_its_wrong_outcomes():
    assert RECORD.stat().st_size < 200_000
    record = Record.load(RECORD)
    assert sum(record.total(part)["wrong"] for part in PARTS) <= len(record.wrong)
