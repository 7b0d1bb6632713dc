"""What is said of lines: where none is the best, which baseline was near, and what one thing is worth."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from lines import rows
from scipy import stats

from ddbench.results.aggregate import Line, aggregate
from ddbench.results.compare import Ask, compared
from ddbench.results.differences import between, one_thing_apart
from ddbench.run.row import Row

SOME = [0.50, 0.51, 0.49, 0.52, 0.53]


def notes(found: list[Row], **ask: Any) -> list[str]:
    return list(compared(found, Ask(**ask))[0].captions)


def best(found: list[Row]) -> list[str]:
    return [row["matcher"] for row in compared(found, Ask())[0].rows if row["best"]]


@pytest.mark.parametrize(
    ("groups", "where"),
    [
        (1, ""),
        (2, " of toy ipc 1 convnet, toy ipc 2 convnet"),
        (4, " of toy ipc 1 convnet, toy ipc 2 convnet, toy ipc 3 convnet, toy ipc 4 convnet"),
        (6, " of toy ipc 1 convnet, toy ipc 2 convnet, toy ipc 3 convnet, toy ipc 4 convnet and 2 more"),
        (9, " of toy ipc 1 convnet, toy ipc 2 convnet, toy ipc 3 convnet, toy ipc 4 convnet and 5 more"),
    ],
)
def test_groups_without_a_best_are_named_once_with_the_reason(groups, where):
    found = [r for i in range(groups) for name in ("random", "mtt") for r in rows(name, SOME[:2], ipc=i + 1)]
    (said,) = [note for note in notes(found) if note.startswith("No line")]
    assert said == (
        f"No line is marked as the best{where}: that takes 5 finished seeds of every line, and each of 2 lines has "
        "fewer (the least 2)."
    )


def test_a_line_is_the_best_where_it_beats_every_other_and_only_there():
    better, same = (
        [s + 0.1 for s in SOME],
        [s + 0.1 + d for s, d in zip(SOME, (0.01, -0.01, 0.0, 0.02, -0.015), strict=True)],
    )
    assert best(rows("random", SOME) + rows("mtt", better)) == []  # differences that do not vary have no p
    better[0] += 0.002
    assert best(rows("random", SOME) + rows("mtt", better)) == ["mtt"]
    found = rows("random", SOME) + rows("mtt", better) + rows("tesla", same)
    assert best(found) == []
    higher = "tesla" if fmean(same) > fmean(better) else "mtt"
    assert any(f"{higher} does not differ significantly from" in note for note in notes(found))


def test_baselines_that_differ_in_an_option_that_changes_nothing_are_one():
    twins = rows("random", SOME, options={"a": 1}) + rows("random", list(SOME), options={"a": 2})
    table = compared(twins + rows("mtt", [s + 0.1 for s in SOME[:-1]] + [0.6]), Ask())[0]
    (mtt,) = [row for row in table.rows if row["matcher"] == "mtt"]
    assert mtt["difference"] == pytest.approx(fmean([0.1] * 4 + [0.07]))
    assert not any("choose the baseline" in note for note in table.captions)


def named(*lines: Line) -> list[tuple[str, Line]]:
    return [(line.name, line) for line in lines]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ({}, {"scheduler": "pdd"}),
        ({}, {"scheduler": "tandem"}),  # after `single` by the alphabet
        ({}, {"label_type": "teacher"}),
        ({}, {"label_type": "a kind of labels"}),
    ],
)
def test_what_one_thing_is_worth_is_told_of_the_less_plain_of_two(plain, other, turned):
    gains = [0.10, 0.11, 0.09, 0.12, 0.13]
    (one,) = aggregate(rows("tesla", SOME, **plain))
    (two,) = aggregate(rows("tesla", [s + g for s, g in zip(SOME, gains, strict=True)], **other))
    (told,) = one_thing_apart(named(two, one) if turned else named(one, two))
    assert (told["title"], told["base"]) == (two.name, one.name)
    assert told["difference"] == pytest.approx(fmean(gains))
    assert told["p_holm"] == pytest.approx(stats.ttest_1samp(gains, 0.0).pvalue)


def test_the_last_of_two_options_by_the_alphabet_is_the_plain_one():
    options = [{"matcher.curvature": name} for name in ("exact", "zero")]
    exact, zero = aggregate([r for o in options for r in rows("tesla", SOME[:2], options=o)])
    (told,) = one_thing_apart(named(exact, zero))
    assert told["base"].endswith("(curvature=zero)")
    assert told["title"].endswith("(curvature=exact)")


@pytest.mark.parametrize(
    ("own", "base", "asked", "said"), [(4, 5, 5, "4 of 5"), (5, 3, 5, "3 of 5"), (5, 5, 6, "5 of 6")]
)
def test_a_pair_of_fewer_seeds_than_a_first_place_takes_has_no_p_and_says_so(own, base, asked, said):
    one, two = (aggregate(rows("tesla", SOME[:n], **more))[0] for n, more in ((base, {}), (own, {"scheduler": "pdd"})))
    other = aggregate(rows("tesla", [s + 0.1 * s for s in SOME], label_type="soft"))[0]
    told = one_thing_apart(named(one, two, other), asked)
    few = next(row for row in told if row["title"] == two.name and row["base"] == one.name)
    assert (few["p_holm"], few["test"]) == (None, f"none: {said} seeds")
    assert few["difference"] is not None
    full = one_thing_apart(named(aggregate(rows("tesla", SOME))[0], other), 5)
    assert full[0]["p_holm"] == pytest.approx(stats.ttest_1samp([0.1 * s for s in SOME], 0.0).pvalue)


def test_pairs_that_differ_in_two_things_or_in_their_method_or_ipc_are_not_told():
    base = rows("tesla", SOME[:2])
    for more in ({"scheduler": "pdd", "label_type": "soft"}, {"ipc": 2, "scheduler": "pdd"}):
        assert one_thing_apart(named(*aggregate(base + rows("tesla", SOME[:2], **more)))) == []
    assert one_thing_apart(named(*aggregate(base + rows("mtt", SOME[:2], scheduler="pdd")))) == []
    assert one_thing_apart(named(*aggregate(base + rows("tesla", SOME[:2], network="convnet(width=9)")))) == []


@pytest.mark.parametrize("turned", [False, True])
def test_random_images_in_one_set_are_the_baseline_where_there_are_some_in_stages_too(turned):
    """Those in stages are in this case better, and would change the sign."""
    one, staged = rows("random", SOME[:2]), rows("random", [0.8, 0.81], scheduler="pdd")
    found = (staged + one if turned else one + staged) + rows("mtt", [s + 0.1 for s in SOME[:2]])
    by_name = {(row["matcher"], row["scheduler"]): row for row in compared(found, Ask())[0].rows}
    assert by_name["mtt", "single"]["difference"] == pytest.approx(0.1)
    assert by_name["random", "single"]["baseline"] == "(itself)"
    assert by_name["random", "pdd"]["difference"] == pytest.approx(0.3)


def test_a_line_alone_is_not_called_the_best():
    assert best(rows("mtt", SOME)) == []


@pytest.mark.parametrize("costs", [(1000, 500), (500, 1000), (700, 700)])
def test_costs_of_a_line_are_means_and_those_that_agree_stay_whole(costs):
    found = [r for cost, r in zip(costs, rows("mtt", SOME[:2]), strict=True)]
    lines = aggregate([Row(**{**vars(r), "steps": cost}) for cost, r in zip(costs, found, strict=True)])
    (line,) = lines
    assert line.row.steps == sum(costs) / 2
    assert type(line.row.steps) is (int if costs[0] == costs[1] else float)


def test_a_student_that_gets_nothing_right_counts_as_nothing():
    (line,) = aggregate(rows("mtt", [0.0, 0.5]))
    assert line.row.accuracy_mean == 0.25
    assert line.scores == {0: 0.0, 1: 0.5}


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_evaluations_with_other_seeds_the_one_with_the_smaller_seed_counts(turned):
    (found,) = rows("mtt", [0.5])
    both = [replace(found, seed=7, evaluation_seed=seed, accuracy_mean=score) for seed, score in ((0, 0.1), (1, 0.9))]
    (line,) = aggregate(both[::-1] if turned else both)
    assert line.scores == {7: 0.1}


def test_every_pair_that_differs_in_one_thing_is_told_whatever_stands_before_it():
    lines = aggregate(
        [
            r
            for ipc, labels in ((1, "hard"), (2, "hard"), (2, "soft"), (3, "hard"), (3, "soft"))
            for r in rows("tesla", SOME[:2], ipc=ipc, label_type=labels)
        ]
    )
    assert [told["ipc"] for told in one_thing_apart(named(*lines))] == [2, 3]


def test_images_that_are_not_said_to_be_packed_are_not_packed():
    plain, packed = rows("random", SOME[:2]), rows("random", [0.7, 0.71], options={"decoder.factor": 2})
    for options, gain in (({}, 0.2), ({"decoder.factor": 1}, 0.2), ({"decoder.factor": 2}, 0.0)):
        other = rows("mtt", [0.70, 0.71], options=options)
        (mtt,) = [row for row in compared(plain + packed + other, Ask())[0].rows if row["matcher"] == "mtt"]
        assert mtt["difference"] == pytest.approx(gain)


@pytest.mark.parametrize(("scheduler", "before"), [("pdd", True), ("tandem", False)])
def test_random_images_in_one_set_are_the_baseline_whatever_the_stages_of_others_are_called(scheduler, before):
    assert (scheduler < "single") == before
    one, staged = rows("random", SOME[:2]), rows("random", [0.8, 0.81], scheduler=scheduler)
    table = compared(one + staged + rows("mtt", [s + 0.1 for s in SOME[:2]]), Ask())[0]
    (mtt,) = [row for row in table.rows if row["matcher"] == "mtt"]
    assert mtt["difference"] == pytest.approx(0.1)
    assert not any("choose the baseline" in note for note in table.captions)


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        (["ok"], "ok"),
        (["ok", "ok", "ok"], "ok"),
        (["diverged"], "diverged"),
        (["diverged", "diverged"], "2 diverged"),
        (["diverged", "ok", "ok"], "2 ok, 1 diverged"),
        (["incomplete", "diverged", "ok"], "1 ok, 1 diverged, 1 incomplete"),
    ],
)
def test_a_line_says_how_many_of_its_runs_ended_how(statuses, said):
    made = rows("mtt", [0.5 + 0.01 * i for i in range(len(statuses))], setting="s")
    found = [
        row if status == "ok" else replace(row, status=status, accuracy_mean=None, n=0)
        for row, status in zip(made, statuses, strict=True)
    ]
    (line,) = aggregate(found)
    assert line.row.status == said


def test_averages_over_unequal_seeds_are_not_tested():
    uneven = rows("mtt", SOME, setting="a") + rows("mtt", SOME[:2], setting="b")
    mtt, random = aggregate(uneven + rows("random", [s + 0.1 + s * s for s in SOME], setting="c"), ["matcher"])
    assert (mtt.testable, random.testable) == (False, True)
    assert between(mtt, random).p is None
    assert "are not the same" in between(mtt, random).note


def test_the_labels_of_a_line_are_those_of_the_runs_that_finished_or_of_all_if_none_did():
    done, lost = rows("mtt", [0.5, 0.6], setting="s")
    lost = replace(lost, status="diverged", accuracy_mean=None, n=0, label_type=None)
    (line,) = aggregate([done, lost])
    assert line.row.label_type == "hard"
    (line,) = aggregate([replace(lost, label_type="soft")])
    assert line.row.label_type == "soft"
