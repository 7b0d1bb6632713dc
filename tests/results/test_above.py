"""Which lines are marked as not above random images, by which numbers, and what people and programs see of it."""

from __future__ import annotations

from statistics import pstdev
from typing import Any

import pytest
from lines import rows
from scipy import stats

from ddbench.results import differences, tables
from ddbench.results.aggregate import aggregate
from ddbench.results.compare import Ask, compared, tripped
from ddbench.results.tables import LEGEND
from ddbench.run.row import Row

SOME = [0.50, 0.51, 0.49, 0.52, 0.53]
MORE = [score + 0.002 for score in SOME]
HIGH = [0.60, 0.62, 0.58, 0.63, 0.61]


def table(found: list[Row], **ask: Any) -> tables.Table:
    return compared(found, Ask(**ask))[0]


def cells(found: list[Row], matcher: str = "mtt", **ask: Any) -> dict[str, Any]:
    (row,) = [row for row in table(found, **ask).rows if row["matcher"] == matcher]
    return dict(row)


def shown(found: list[Row], matcher: str = "mtt", **ask: Any) -> str:
    return tables.cell("accuracy_mean", cells(found, matcher, **ask))


@pytest.mark.parametrize(("scores", "above"), [(HIGH, True), (MORE, False), ([s - 0.2 for s in SOME], False)])
def test_over_seeds_the_interval_is_welchs(scores, above):
    found = rows("random", SOME) + rows("mtt", scores)
    held = cells(found)
    due = stats.ttest_ind(scores, SOME, equal_var=False).confidence_interval(0.95)
    (beside,) = held["random"]
    assert (beside["low"], beside["high"]) == pytest.approx((due.low, due.high), rel=1e-11)
    assert (beside["baseline"], beside["above"], held["above_random"]) == ("random", above, above)
    assert shown(found).endswith(" ‡") is not above
    assert (LEGEND in table(found).captions) is not above
    for form in ("md", "html", "csv", "json"):
        text = tables.render(table(found), form)
        assert ("‡" in text or "&#8225;" in text) is (form in ("md", "html") and not above)
    assert (r"$\ddagger$" in tables.render(table(found), "latex")) is not above


def test_over_one_run_each_it_is_over_their_students():
    one, other = [0.30, 0.32, 0.31], [0.31, 0.30, 0.315]
    found = [
        *rows("random", [0.31], n=3, accuracy_std=pstdev(one)),
        *rows("mtt", [sum(other) / 3], n=3, accuracy_std=pstdev(other)),
    ]
    due = stats.ttest_ind(other, one, equal_var=False).confidence_interval(0.95)
    for ask in ({}, {"per_run": True}):
        assert cells(found, **ask)["above_random"] is False
        assert shown(found, **ask).endswith(" ‡")
        assert LEGEND in table(found, **ask).captions
    (beside,) = cells(found)["random"]
    assert (beside["low"], beside["high"]) == pytest.approx((due.low, due.high), rel=1e-11)


@pytest.mark.parametrize(
    ("random", "own", "reason"),
    [
        (rows("random", [0.5], n=1), rows("mtt", [0.4], n=1), "one student"),
        (rows("random", [0.5], n=1), rows("mtt", [0.4], n=5, accuracy_std=0.1), "one student"),
        (rows("random", SOME), rows("mtt", [0.4], n=5, accuracy_std=0.1), "one seed beside 5"),
        (rows("random", [0.5], n=5, accuracy_std=0.1), rows("mtt", SOME), "one seed beside 5"),
    ],
)
def test_where_there_is_no_interval_nothing_is_marked_and_that_is_said(random, own, reason):
    held = cells(random + own)
    assert held["above_random"] is None
    assert f"random images: not known ({reason})" in held["note"]
    assert "‡" not in shown(random + own)
    (beside,) = held["random"]
    assert (beside["low"], beside["above"], beside["note"]) == (None, None, reason)


def test_random_images_are_never_marked_and_coresets_are():
    found = rows("random", SOME) + rows("random", SOME, scheduler="pdd") + rows("herding", SOME)
    marks = {(r["matcher"], r["scheduler"]): r["above_random"] for r in table(found).rows}
    assert marks == {("random", "single"): None, ("random", "pdd"): None, ("herding", "single"): False}


def test_lines_without_random_images_in_their_group_say_nothing():
    for found in (rows("mtt", SOME), rows("mtt", SOME) + rows("random", HIGH, ipc=10)):
        assert (cells(found)["above_random"], cells(found)["random"]) == (None, None)
        assert cells(found)["note"] is None
        assert "above_random" not in cells(rows("mtt", [0.5]), per_run=True)


def test_soft_labels_are_compared_with_both_kinds_and_it_is_said_which_is_not_beaten():
    found = rows("random", SOME) + rows("random", HIGH, label_type="teacher") + rows("mtt", HIGH, label_type="learned")
    held = cells(found)
    assert [(b["baseline"], b["above"]) for b in held["random"]] == [
        ("random", True),
        ("random (teacher labels)", False),
    ]
    assert held["above_random"] is False
    assert held["note"].split("; ")[-1] == "‡ to random (teacher labels)"
    assert cells([*found, *rows("dm", HIGH)], "dm")["above_random"] is True  # hard labels have hard ones to beat


def test_an_evaluation_stands_beside_random_images_of_its_own_seed():
    found = rows("random", [0.5, 0.9], n=3, accuracy_std=0.01) + rows("mtt", [0.7, 0.7], n=3, accuracy_std=0.01)
    marks = {r["seed"]: r["above_random"] for r in compared(found, Ask(per_run=True))[0].rows if r["matcher"] == "mtt"}
    assert marks == {0: True, 1: False}


def test_programs_can_fail_on_it_and_random_images_do_not_trip_it():
    for scores, due in ((HIGH, 0), (MORE, 1)):
        found = table(rows("random", SOME) + rows("mtt", scores)).rows
        assert len(tripped(found, ["above_random=false"])) == due
        (who,) = tripped(found, ["above_random=false"]) or ["mtt"]
        assert "mtt" in who


def test_chosen_columns_show_people_the_interval():
    found = table(rows("random", SOME) + rows("mtt", MORE), columns=("method", "random"))
    titles, body = found.text()
    assert titles == ["method", "to random [95 %]"]
    assert body[0][1].startswith("random +0.2 [-")


def test_the_table_of_single_differences_bears_no_mark_that_it_does_not_explain():
    lines = aggregate(rows("random", HIGH) + rows("mtt", SOME) + rows("mtt", MORE, scheduler="pdd"))
    differences.test(lines, None, 5)
    (pair,) = differences.one_thing_apart([(line.name, line) for line in lines if line.row.matcher == "mtt"])
    assert "‡" not in pair["base_accuracy"] + tables.cell("accuracy_mean", pair)
