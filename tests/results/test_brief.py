"""Tables for a terminal: what fits is shown whole, and what does not is named."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ddbench.cli import console
from ddbench.results import compare
from ddbench.results.aggregate import per_run
from ddbench.results.brief import COLUMNS, GAP, MOST, brief
from ddbench.results.compare import Ask
from ddbench.results.tables import LINES, PER_RUN, Table
from ddbench.run.row import Row, method_name

RANDOM = [0.50, 0.51, 0.49, 0.52, 0.53]
BETTER = [0.60, 0.62, 0.58, 0.63, 0.61]
COSTS = {"distil_seconds": 31.0, "expert_seconds": 22.4, "image_bytes": 2560, "label_bytes": 400, "steps": 500}


def line(**more: Any) -> Row:
    """One evaluation of a run."""
    base = {
        "dataset": "toy",
        "dataset_digest": "d" * 8,
        "matcher": "tesla",
        "scheduler": "single",
        "network": "convnet",
    }
    base |= {"ipc": 1, "seed": 0, "protocol": "default", "protocol_digest": "aaaaaaaabbbb", "label_type": "hard"}
    base |= {"status": "ok", "selection": "validation", "n": 2, "accuracy_mean": 0.5, "accuracy_std": 0.1}
    return Row(**base | {"options": {"decoder.factor": 1}} | more)


def runs(matcher: str, scores: list[float | None], **more: Any) -> list[Row]:
    """Runs of one setting with seeds 0, 1, ...; those without an accuracy diverged."""
    bad = {"status": "diverged", "n": 0, "accuracy_std": None}
    named = [{"matcher": matcher, "seed": s, "accuracy_mean": a, "run": f"{matcher}-{s}"} for s, a in enumerate(scores)]
    return [line(**one | (bad if one["accuracy_mean"] is None else {}) | more) for one in named]


MANY = [
    *runs("random", RANDOM, **COSTS),
    *runs("random", RANDOM, label_type="teacher", setting="t", **COSTS),
    *runs("trajectory-matching", BETTER, scheduler="pdd", label_type="teacher", **COSTS),
    *runs("dm", BETTER, ipc=10, network="convnet(width=16)", **COSTS),
    *runs("dm", BETTER, dataset="digits", dataset_digest="e" * 8, protocol="pdd-paper", **COSTS),
]


def lines(rows: list[Row], **ask) -> Table:
    return compare.compared(rows, Ask(**ask))[0]


def shown(table: Table, width: int, monkeypatch) -> list[str]:
    """The lines that a terminal of this width shows."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True, color_system=None)
    monkeypatch.setattr(console, "_console", lambda **_: terminal)
    console.show(table, "table", wide=False)
    return terminal.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("per", [False, True])
def test_a_table_fits_the_terminal_in_at_most_eight_columns_and_breaks_no_word(width, per, monkeypatch):
    table = lines(MANY, per_run=per)
    found = shown(table, width, monkeypatch)
    assert max(map(len, found)) <= width
    words = {word for text in found for word in text.split()}
    assert {"random", "trajectory-matching", "pdd", "convnet(width=16)", "digits"} <= words
    titles, body, _, _ = brief(table, width)
    assert len(titles) <= MOST
    assert {len(row) for row in body} == {len(titles)}
    assert {"dataset", "network", "method", "ipc", "accuracy %"} <= set(titles)
    assert ("pdd-paper" in words) is ("protocol" in titles)
    assert "Left out for lack of room: " in " ".join(" ".join(found).split())


@given(st.integers(20, 200))
def test_what_is_left_out_is_named_and_what_is_shown_fits_or_nothing_more_can_go(width):
    table = lines(MANY)
    titles, _, notes, least = brief(table, width)
    left = [note for note in notes if note.startswith("Left out for lack of room: ")]
    named = left[0].partition(": ")[2].partition(";")[0].split(", ") if left else []
    told = {"seeds": "seeds 5", "total kB": "total kB 3.0", "time s": "time s 53"}  # all lines agree on them
    once = {title for title, text in told.items() if any(text in note for note in notes)}
    assert {*titles, *named} == {*COLUMNS.values(), "seeds"} - {"n", "seed", "status"} - once
    assert sum(least) + GAP * (len(least) - 1) <= width or set(titles) == {"method", "ipc", "accuracy %"}


def _agreed(notes: list[str]) -> set[str]:
    """The columns whose cells are said once."""
    return {
        title for title in COLUMNS.values() for note in notes if note.startswith("In all lines:") and title in note
    } | ({"seeds"} if any("seeds 5" in note for note in notes) else set())


def test_what_is_the_same_for_all_is_said_once_even_of_a_single_line():
    table = lines(runs("dm", BETTER, **COSTS))
    titles, body, notes, _ = brief(table, 80)
    assert titles == ["method", "ipc", "seeds", "accuracy %", "time s", "total kB"]
    assert body == [["dm", "1", "5", "60.8 [58.4, 63.2]", "53", "3.0"]]
    assert notes[0] == ("In all lines: dataset toy, network convnet, protocol default, labels hard, N 500, students 2.")


def test_a_single_run_has_its_deviation_over_students_and_its_difference_to_random_images():
    rows = [line(matcher="random", run="r", accuracy_mean=0.4), line(run="t")]
    again = line(run="t", n=1, accuracy_std=None)  # graded once more, by one student
    titles, body, _, _ = brief(lines([*rows, again]), 80)
    cells = {row[0]: dict(zip(titles, row, strict=True)) for row in body}
    assert (cells["tesla"]["accuracy %"], cells["tesla"]["difference"]) == ("50.0 ± 10.0 ‡", "+10.0")
    titles, body, _, _ = brief(Table(per_run(rows), PER_RUN), 80)
    cells = {row[0]: dict(zip(titles, row, strict=True)) for row in body}
    assert (cells["tesla"]["accuracy %"], cells["tesla"]["difference"]) == ("50.0 ± 10.0 ‡", "+10.0")
    assert (cells["random"]["accuracy %"], cells["random"]["difference"]) == ("40.0 ± 10.0", "")


def test_a_single_run_with_soft_labels_is_beside_random_images_with_soft_labels():
    soft = {"label_type": "teacher"}
    rows = [
        line(run="t", **soft),
        line(matcher="random", run="s", accuracy_mean=0.45, **soft),
        line(matcher="random", run="r", accuracy_mean=0.4),
    ]
    titles, body, notes, _ = brief(Table(per_run(rows), PER_RUN), 80)
    cells = {row[0]: dict(zip(titles, row, strict=True)) for row in body}
    assert cells["tesla (teacher labels)"]["difference"] == "+5.0"
    assert "Difference, in points: to random (teacher labels); intervals and p are columns of --wide." in notes


def test_a_run_that_did_not_finish_says_so_and_a_damaged_one_goes_by_its_name():
    bad = Row(run="toy-x", status="damaged", error="spec.json is damaged", setting="toy-x")
    titles, body, notes, _ = brief(lines([*runs("dm", [0.5, None]), bad]), 80)
    assert titles == ["method", "ipc", "seeds", "accuracy %", "status"]
    assert body == [["dm", "1", "1", "50.0", "1 ok, 1 diverged"], ["toy-x", "", "0", "", "damaged"]]
    assert "toy-x: spec.json is damaged." in notes


def test_published_numbers_and_columns_that_lines_are_made_by_are_shown():
    titles, _, _, _ = brief(lines(MANY, group_by=("matcher", "decoder.factor")), 200)
    assert "decoder.factor" in titles


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("dm", "single", "hard"), "dm"),
        (("dm", "pdd", None), "dm pdd"),
        (("random", "single", "teacher"), "random (teacher labels)"),
        (("tesla", "pdd", "teacher"), "tesla pdd (teacher labels)"),
    ],
)
def test_a_method_is_called_alike_everywhere(given, expected):
    assert method_name(*given) == expected
    row = line(matcher=given[0], scheduler=given[1], label_type=given[2])
    (found,) = lines([row], columns=("method", "accuracy")).text()[1]
    assert found[0] == brief(lines([row]), 80)[1][0][0] == expected


def test_a_chosen_method_tells_programs_apart_what_it_tells_people():
    rows = [line(run="a", accuracy_mean=0.4), line(run="b", scheduler="pdd")]
    assert [row["method"] for row in lines(rows, columns=("method",)).records()] == ["tesla pdd", "tesla"]


def test_intervals_of_accuracies_stay_within_what_accuracies_can_be():
    table = lines(runs("dm", [0.99, 0.80, 1.0]) + runs("random", [0.0, 0.2]))
    bounds = {row["matcher"]: (row["ci_low"], row["ci_high"]) for row in table.rows}
    assert bounds["dm"][1] == 1.0
    assert bounds["random"][0] == 0.0
    assert any("cut to 0 to 100 %" in note for note in table.notes())
    assert "ci_low" in LINES
