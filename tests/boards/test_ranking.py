"""Tables of leaderboards: who is first, what is marked, what is stale, and that nothing depends on the day."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from boardkit import HOSTILE, board, made, posted
from scipy.stats import ttest_1samp
from tiny import artefacts, ddbench, options

from ddbench.base.cache import write_json
from ddbench.boards import ranking as leaderboard
from ddbench.boards.board import Board
from ddbench.boards.places import found
from ddbench.boards.ranking import BEGIN, END, board_text, build, overview, stale, standings
from ddbench.boards.site import site
from ddbench.cli import boards
from ddbench.errors import DataError, UsageError
from ddbench.results import published
from ddbench.results.tables import LEGEND

FIVE = list(range(5))
LOW = [0.50, 0.51, 0.49, 0.52, 0.53]
HIGH = [0.60, 0.62, 0.58, 0.63, 0.61]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("runs"), seeds=(0,))[0]


@pytest.fixture
def five(tmp_path, run) -> Board:
    return board(tmp_path, run, seeds=FIVE)


def ranked(board: Board, ipc: int = 1) -> list[tuple[int | None, str, bool]]:
    return [(place.rank, place.title, place.line.best) for place in standings(board).places[ipc]]


def test_entries_are_ranked_by_their_mean_within_each_ipc(five, run):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    posted(five, run, "three", LOW, matcher="k-means", ipc=2)
    assert ranked(five) == [(1, "dm", True), (2, "random", False)]
    assert ranked(five, 2) == [(1, "k-means", False)]


def test_a_first_place_is_marked_only_where_it_differs_from_every_other(five, run):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    assert standings(five).places[1][0].line.best
    posted(
        five, run, "three", [s + d for s, d in zip(HIGH, (0.02, -0.02, 0.01, -0.01, 0.001), strict=True)], matcher="dsa"
    )
    assert not any(best for _, _, best in ranked(five))
    assert any("does not differ significantly" in note for note in standings(five).notes)


def test_an_entry_that_is_not_above_random_images_is_marked_with_a_legend(five, run):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    assert LEGEND not in board_text(standings(five))
    posted(five, run, "three", [s + 0.002 for s in LOW], matcher="dsa")
    posted(five, run, "four", [s - 0.2 for s in LOW], matcher="dsa", ipc=2)  # no random images at this ipc
    text = board_text(standings(five))
    assert re.search(r"\| dsa \| hard \| 51\.2 ± 1\.6 ‡ \|", text)
    assert text.count("± 1.6 ‡") == text.count("‡:") == text.count(LEGEND) == 1
    marked = {(p.title, p.line.row.ipc): p.line.above_random for p in standings(five).flat()}
    assert marked == {("random", 1): None, ("dm", 1): True, ("dsa", 1): False, ("dsa", 2): None}
    pages = site([standings(five)])
    assert "51.2 ± 1.6 ‡" in pages["toys.html"]
    assert LEGEND in pages["toys.html"]


def test_a_leader_that_is_not_above_random_images_is_marked_in_the_overview(five, run):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    assert "‡" not in overview([standings(five)])
    posted(five, run, "two", [s + 0.002 for s in LOW], matcher="dm")
    text = overview([standings(five)])
    assert "51.2 ± 1.6 ‡" in text
    assert text.endswith(LEGEND)


def test_a_first_place_takes_the_boards_number_of_seeds(tmp_path, run):
    most = board(tmp_path, run, seeds=FIVE, mark_seeds=6)
    posted(most, run, "one", LOW)
    posted(most, run, "two", HIGH, matcher="dm")
    assert not any(best for _, _, best in ranked(most))
    assert any("takes 6 finished seeds of every line" in note for note in standings(most).notes)
    assert ("a first place is marked", "never: that takes 6 seeds") in leaderboard.rules(most)


def test_a_short_entry_unmarks_its_own_ipc_alone(five, run):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    posted(five, run, "three", [0.9, 0.9, 0.9, 0.9, None], ipc=2, matcher="dm")
    posted(five, run, "four", [0.5, 0.6, 0.5, 0.6, 0.5], ipc=2)
    posted(five, run, "gone", [None] * 5, matcher="dsa")  # what never finished has no seeds to be short of
    assert [best for _, _, best in ranked(five)] == [True, False, False]
    assert not any(best for _, _, best in ranked(five, 2))


def test_a_mark_goes_only_to_the_better_side_of_a_difference(tmp_path, run):
    """Over the seeds that both finished the second is better, over all of its own the first: no mark for the first."""
    ten = board(tmp_path, run, seeds=list(range(10)))
    early = [0.50, 0.51, 0.52, 0.53, 0.54]
    posted(ten, run, "one", early + [0.9] * 5)
    posted(
        ten,
        run,
        "two",
        [x + 0.012 + d for x, d in zip(early, (0, 1e-3, 0, -1e-3, 0), strict=True)] + [None] * 5,
        matcher="dm",
    )
    assert [(title, best) for _, title, best in ranked(ten)] == [("random", False), ("dm", False)]
    assert any("random" in note and "does not differ" in note for note in standings(ten).notes)


def test_two_methods_of_one_name_are_told_apart(five, run):
    posted(five, run, "one", LOW, method="ours", author="Ada")
    posted(five, run, "two", HIGH, method="ours", author="Bob", matcher="dm")
    assert {title for _, title, _ in ranked(five)} == {
        "ours [Ada] [random single, hard labels]",
        "ours [Bob] [dm single, hard labels]",
    }


def test_several_machines_are_said(five, run):
    posted(five, run, "one", LOW)
    assert not any("machines" in note for note in standings(five).notes)
    entry = posted(five, run, "two", HIGH, matcher="dm")
    for part in entry["runs"]:
        part["result"]["machine"]["device"] = "a faster one"
    write_json(five.folder / "entries" / "two.json", entry)
    assert any("several machines" in note and "a faster one" in note for note in standings(five).notes)
    assert "a faster one" in leaderboard.board_text(standings(five))


def test_equal_means_share_a_rank_and_what_never_finished_has_none(five, run):
    posted(five, run, "b", HIGH, matcher="dm")
    posted(five, run, "a", HIGH, matcher="dsa")
    posted(five, run, "c", LOW)
    posted(five, run, "d", [None] * 5, matcher="tesla")
    assert [rank for rank, _, _ in ranked(five)] == [1, 1, 3, None]
    (last,) = (place for place in standings(five).places[1] if place.entry.name == "d")
    assert last.line.row.status == "5 diverged"


def test_diverged_seeds_are_status_and_not_holes(five, run):
    posted(five, run, "one", [0.5, None, 0.5, 0.6, None])
    (place,) = standings(five).places[1]
    assert (len(place.line.scores), place.line.row.status) == (3, "3 ok, 2 diverged")


def test_entries_of_one_method_are_told_apart_by_their_options(five, run):
    for name, steps in (("one", 10), ("two", 20)):
        entry = posted(five, run, name, LOW, matcher="dm")
        for part in entry["runs"]:
            part["spec"]["matcher"]["options"] = {"steps": steps}
        write_json(five.folder / "entries" / f"{name}.json", entry)
    assert {title for _, title, _ in ranked(five)} == {"dm (steps=10)", "dm (steps=20)"}


def test_two_entries_of_the_same_settings_are_refused(five, run):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH)
    with pytest.raises(DataError, match="one and two of board 'toys' are of the same settings"):
        standings(five)


def test_published_numbers_stand_apart_and_are_not_ranked(five, run, monkeypatch):
    value = published.Reported("DM", "none", "Toy", "ConvNetD3", 1, 26.0, 0.8, "Someone (2024) Table 1")
    monkeypatch.setattr(published, "elsewhere", lambda row: [value] if row.matcher == "dm" else [])
    posted(five, run, "one", HIGH, matcher="dm")
    text = leaderboard.board_text(standings(five))
    ranking, _, reported = text.partition("## Reported elsewhere")
    assert "26.0 ± 0.8" not in ranking
    assert re.search(r"26\.0 ± 0\.8 .*Someone \(2024\) Table 1 .*another", reported)
    assert "neither ranked nor tested" in reported


def test_the_same_entries_give_the_same_bytes(five, run, tmp_path):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    assert build([five], tmp_path, [five]) == build([five], tmp_path, [five])


def test_build_writes_and_check_names_what_is_stale(five, run, tmp_path):
    posted(five, run, "one", LOW)
    (tmp_path / "README.md").write_text(f"# Ours\n\nProse.\n\n{BEGIN}\nold\n{END}\n\nMore prose.\n")
    wanted = build([five], tmp_path, [five])
    assert stale(wanted) == [five.folder / "README.md", tmp_path / "README.md"]
    for path, text in wanted.items():
        path.write_text(text)
    assert stale(build([five], tmp_path, [five])) == []
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Ours\n\nProse.\n")
    assert text.endswith(f"{END}\n\nMore prose.\n")
    assert "old" not in text
    assert "| 1 | 1 | random | 51.0 ± 1.6 |" in text
    posted(five, run, "one", HIGH)
    assert len(stale(build([five], tmp_path, [five]))) == 2


def test_an_overview_without_its_markers_is_refused(five, tmp_path):
    (tmp_path / "README.md").write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(DataError, match="once each"):
        build([five], tmp_path, [five])


def test_a_board_without_entries_says_so(five):
    text = leaderboard.board_text(standings(five))
    assert text.count("No entries yet.") == 2


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_stay_text_in_markdown(five, run, kind):
    text = HOSTILE[kind]
    posted(five, run, "one", LOW, method=text, author=text, link=text, note=text, command=text, date=text)
    made = leaderboard.board_text(standings(five))
    made.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]", made)
    prose = "\n".join(line for line in made.splitlines() if not line.startswith(("    ", "<!--")))
    assert "<script" not in prose
    assert "<img" not in prose
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    rows = [line for line in prose.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    assert max(map(len, made.splitlines())) < 2500


def carry_out(command: click.Command, *words: object) -> int:
    return command.main([str(word) for word in words], standalone_mode=False)


def test_the_commands_build_and_check(five, run, tmp_path, capfd):
    posted(five, run, "one", LOW)
    assert carry_out(boards.leaderboard, "build", "--boards", tmp_path) == 0
    assert carry_out(boards.leaderboard, "build", "--boards", tmp_path, "--check") == 0
    posted(five, run, "one", HIGH)
    before = artefacts(tmp_path)
    capfd.readouterr()
    assert carry_out(boards.leaderboard, "build", "--boards", tmp_path, "--check") == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "toys/README.md is out of date" in said
    assert "toys/README.md" not in said.replace("toys/README.md", "", 1)
    assert artefacts(tmp_path) == before


def test_the_commands_lead_from_runs_to_pages(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    folders = made(tmp_path / "runs")
    new = ("new", "mine", folders[0], "--title", "Mine", "--students", 2, "--seeds", 2, "--boards", tmp_path)
    assert carry_out(boards.leaderboard, *new) == 0
    with pytest.raises(UsageError, match="is there already; give the new board another name"):
        carry_out(boards.leaderboard, *new)
    assert (
        carry_out(boards.submit, *folders, "mine", "--boards", tmp_path, "--author", "A", "--sets", tmp_path / "sets")
        == 0
    )
    with pytest.raises(UsageError, match="there is no board"):
        carry_out(boards.submit, *folders, "yours", "--boards", tmp_path)
    with pytest.raises(UsageError, match="submit takes runs and then a board"):
        carry_out(boards.submit, "mine", "--boards", tmp_path)
    assert carry_out(boards.leaderboard, "html", "--boards", tmp_path, "--to", tmp_path / "site") == 0
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"index.html", "mine.html", "mine"}
    assert carry_out(boards.report, folders[0]) == 0
    assert (folders[0] / "report.html").exists()
    assert capfd.readouterr().out.splitlines()[-1] == str(folders[0] / "report.html")


def test_a_suite_stands_for_the_runs_of_its_cells(tmp_path, monkeypatch):
    monkeypatch.setenv("DDBENCH_THREADS", "1")
    folders = made(tmp_path / "runs")
    toys = board(tmp_path / "boards", folders[0])
    path = tmp_path / "s.toml"
    rules = "\n".join(f'"{name}" = {value!r}' for name, value in options("random").items())
    axes = 'dataset = "toy"\nmatcher = "random"\nipc = 1'
    path.write_text(f'title = "s"\nseeds = [0, 1]\nstudents = 2\n[options]\n{rules}\n[[matrix]]\n{axes}\n')
    words = (
        "submit",
        path,
        "toys",
        "--boards",
        tmp_path / "boards",
        "--out",
        tmp_path / "runs",
        "--sets",
        tmp_path / "sets",
    )
    answer = ddbench(*words, home=tmp_path / "home")
    assert answer.code == 0, answer.err
    assert [[run.seed for run in entry.runs] for entry in toys.entries()] == [[0, 1]]
    (folders[1] / "result.json").unlink()
    answer = ddbench(*words, "--replace", home=tmp_path / "home")
    assert answer.code == 2
    assert "1 of 2 cells of" in answer.err
    assert "ddbench suite run" in answer.err


def test_entries_that_differ_in_one_thing_are_paired(five, run):
    """A scheduler, labels or an option: each pair once, the plainer entry as what it is compared with."""
    shift = {"zero": 0.0, "exact": 0.02, "staged": -0.03, "soft": 0.1, "both": 0.3, "other": 0.35}
    for name, apart in shift.items():
        scores = [x + apart + 0.001 * i for i, x in enumerate(LOW)] if apart else LOW
        entry = posted(five, run, name, scores, matcher="dm" if name == "other" else "tesla")
        for part in entry["runs"]:
            spec = part["spec"]
            curvature = "exact" if name in ("exact", "both") else "zero"
            spec["matcher"]["options"] = {"curvature": curvature, "steps": 40, "labels": "hard"}
            if name in ("staged", "both"):
                spec["scheduler"] = {"name": "pdd", "options": {"stages": 2}}
                spec["matcher"]["options"]["steps"] = 20
            if name == "soft":
                part["result"] |= {"label_type": "teacher", "label_bytes": 4 * 3 * part["result"]["images"]}
                spec["matcher"]["options"]["labels"] = "teacher"
        words = {"staged": "tesla pdd", "both": "tesla pdd", "soft": "tesla (teacher labels)"}
        entry["method"] = words.get(name, entry["method"])
        write_json(five.folder / "entries" / f"{name}.json", entry)
    found = {(row["title"], row["base"]): row for row in standings(five).pairs}
    assert {pair for pair in found if "pdd" not in pair[0]} == {
        ("tesla (curvature=exact)", "tesla (curvature=zero)"),
        ("tesla (teacher labels) (curvature=zero)", "tesla (curvature=zero)"),
    }
    assert {pair for pair in found if "pdd" in pair[0]} == {
        ("tesla pdd (curvature=zero)", "tesla (curvature=zero)"),
        ("tesla pdd (curvature=exact)", "tesla (curvature=exact)"),
        ("tesla pdd (curvature=exact)", "tesla pdd (curvature=zero)"),
    }
    staged = found["tesla pdd (curvature=zero)", "tesla (curvature=zero)"]
    assert staged["difference"] == pytest.approx(-0.03 + 0.002)
    assert staged["apart"] == "steps=20 instead of 40"
    assert staged["base_accuracy"] == "51.0 ± 1.6"
    raw = sorted(float(ttest_1samp([apart + 0.001 * i for i in range(5)], 0).pvalue) for apart in (0.02, -0.03, 0.1))
    known = sorted(row["p_holm"] for row in found.values() if row["p_holm"] is not None)  # of two, seeds do not vary
    assert known == pytest.approx([3 * raw[0], 2 * raw[1], raw[2]], rel=1e-6)
    assert "## Differences in one thing" in leaderboard.board_text(standings(five))


def test_own_runs_are_compared_with_the_entries_of_a_board(five, run, tmp_path):
    posted(five, run, "one", LOW)
    posted(five, run, "two", HIGH, matcher="dm")
    words = ["--board", five.folder, "--format", "json"]
    answer = ddbench("compare", *words, home=tmp_path / "home")
    assert [(row["matcher"], row["n"], row["difference"]) for row in answer.json] == [
        ("dm", 5, pytest.approx(0.098, abs=1e-3)),
        ("random", 5, None),
    ]
    own = ddbench("compare", run, *words, "--per-run", home=tmp_path / "home")
    assert len(own.json) == 11
    assert {row["run"] for row in own.json} >= {run.name, "one.seed0", "two.seed4"}
    assert ddbench("compare", "--board", tmp_path / "nowhere", home=tmp_path / "home").code == 2


def test_an_entry_that_is_damaged_or_breaks_the_rules_is_a_row_of_a_comparison_with_its_reason(five, run, tmp_path):
    posted(five, run, "one", LOW)
    entries = five.folder / "entries"
    (entries / "torn.json").write_bytes((entries / "one.json").read_bytes()[:-9])
    two = posted(five, run, "two", HIGH, matcher="dm")
    write_json(entries / "two.json", two | {"runs": two["runs"][:4]})
    for form in ((), ("--per-run",)):
        answer = ddbench("compare", "--board", five.folder, "--format", "json", *form, home=tmp_path / "home")
        assert answer.code == 0
        rows = {row["run"]: row for row in answer.json}
        assert {row["matcher"] for row in rows.values() if row["status"] == "ok"} == {"random"}
        flaws = {row["error"] for row in rows.values() if row["status"] == "damaged"}
        assert len(flaws) == 2
        assert any("torn.json is not readable JSON" in flaw for flaw in flaws)
        assert any("two.json breaks the rules of the board" in flaw and "lacks seed 4" in flaw for flaw in flaws)
    table = ddbench("compare", "--board", five.folder, home=tmp_path / "home")
    assert "damaged" in table.out
    with pytest.raises(DataError, match=r"torn\.json"):
        five.entries()


def test_the_tables_of_this_repository_are_those_of_its_entries():
    root = Path(__file__).parents[2] / "leaderboards"
    every = found((), root)
    assert stale(build(every, root, every)) == [], "run `ddbench leaderboard build`"
