"""The pages of the questions: they are those of their records, and what they say follows from rows planted here."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
SEEDS = range(5)


@pytest.fixture
def docs(monkeypatch):
    """The scripts of the documentation, as ``python docs/questions.py`` finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module


def test_the_pages_are_those_of_their_records(docs):
    for path, text in docs("questions").pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/questions.py"


# --- labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_add_up_and_are_those_of_the_published_formula(docs, count):
    """Shapley's weights over coalitions, |S|! (n - |S| - 1)! / n!, summed apart from the orders of the script."""
    from math import factorial

    draw = random.Random(count)
    value = {corner: draw.random() for corner in itertools.product((False, True), repeat=count)}
    found = docs("question_labels").shares(value)
    assert sum(found) == pytest.approx(value[(True,) * count] - value[(False,) * count], abs=1e-12)
    for factor in range(count):
        expected = 0.0
        for corner in value:
            if not corner[factor]:
                size = sum(corner)
                weight = factorial(size) * factorial(count - size - 1) / factorial(count)
                changed = tuple(on or i == factor for i, on in enumerate(corner))
                expected += weight * (value[changed] - value[corner])
        assert found[factor] == pytest.approx(expected, abs=1e-12)


def row(matcher: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "dataset": "digits",
        "dataset_digest": "d",
        "network": "convnet",
        "protocol": "default",
        "protocol_digest": "p",
        "ipc": 1,
        "steps": 100,
        "n": 3,
        "device": "a CPU",
        "train_images": 1294,
        "matcher": matcher,
        "scheduler": "single",
        "seed": seed,
        "status": "ok",
        "accuracy_mean": accuracy,
        "label_type": "hard",
        "selection": "validation",
        "setting": f"{matcher} {more.get('label_type', '')}",
        "run": f"{matcher}-{seed}-{more}",
        "label_bytes": 10,
        "distil_seconds": 1.0,
        "expert_seconds": 0.0,
    } | more


def matrix(gains: Mapping[str, float], seed: int) -> list[dict[str, Any]]:
    """Cells in which images, labels and augmentation add up, with a little of each seed's own."""
    own = 0.001 * seed
    return [
        {
            "images": images,
            "labels": labels,
            "augmentation": "on" if on else "off",
            "accuracy_mean": 0.5
            + gains.get(images, 0.0) * (1 + own)
            + {"hard": 0.0, "soft": 0.02, "online": 0.05}[labels]
            + 0.04 * on * (1 - own),
            "label_bytes": 10,
            "difficulty": 0.3,
        }
        for images in ("distilled", "random", "matched")
        for labels in ("hard", "soft", "online")
        for on in (True, False)
    ]


def labelled(seeds: range) -> list[dict[str, Any]]:
    """``dm`` is better than both kinds of real images, ``rded`` worse than random and as good as those as hard."""
    gains = {"dm": {"distilled": 0.1, "matched": 0.03}, "rded": {"distilled": -0.05, "matched": -0.05}}
    return [row(name, s, 0.6, controls=matrix(gain, s)) for name, gain in gains.items() for s in seeds]


def cells_of(page: str, *begin: str) -> list[list[str]]:
    """The cells of all lines that begin with these."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return [line for line in lines if tuple(line[: len(begin)]) == begin]


def test_the_page_says_what_each_gain_is_due_to(docs):
    page = docs("question_labels").labels_page(labelled(SEEDS))
    equal, due = cells_of(page, "`dm`", "online")
    assert equal[2:5] == ["69.0", "59.0", "62.0"]  # 50 + 10 + 5 + 4 less a little, and without the 10
    assert due[2].startswith("+19.0 [")
    assert [part.split(" ")[0] for part in due[3:]] == ["+10.0", "+5.0", "+4.0"]
    assert cells_of(page, "`dm`", "hard")[1][4] == ""  # hard labels are what all are compared with
    for kind in ("Hard", "Fixed soft", "Online"):
        assert f"**{kind} labels, beside random images**: above `dm`; not different none; below `rded`." in page
        assert f"**{kind} labels, beside images that are as hard**: above `dm`; not different `rded`" in page


def test_a_method_of_fewer_seeds_waits_for_the_others_and_changes_no_table(docs):
    others = labelled(SEEDS)
    late = [row("ncfm", s, 0.6, controls=matrix({"distilled": 0.3}, s)) for s in range(2)]
    page, before = (docs("question_labels").labels_page(rows) for rows in ([*others, *late], others))
    said = "On record with fewer than 5 seeds, and in no table: `ncfm`."
    assert said in page
    assert page.replace(said + "\n\n", "") == before


def test_intervals_and_p_are_those_of_scipy(docs):
    page = docs("question_labels").labels_page(labelled(SEEDS))
    apart = [0.1 * (1 + 0.001 * s) for s in SEEDS]
    low, high = stats.t.interval(0.95, 4, fmean(apart), stats.sem(apart))
    assert cells_of(page, "`dm`", "hard")[0][5] == f"+10.0 [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert cells_of(page, "`dm`", "hard")[0][6] == "<0.001"


def test_with_fewer_than_five_seeds_no_finding_is_stated(docs):
    page = docs("question_labels").labels_page(labelled(range(4)))
    assert "**No finding is stated**: it takes 5 seeds, and 4 are on record." in page
    assert "above `dm`" not in page
    assert cells_of(page, "`dm`", "hard")[0][6] == ""


# --- coresets --------------------------------------------------------------------------------------------


def contest(ipc: int, ahead: float, seeds: range = SEEDS, kind: str = "hard") -> list[dict[str, Any]]:
    """The coreset of the best validation accuracy has not that of the best test accuracy; ``dm`` is ``ahead`` of it."""
    sides = {"random": (0.5, 0.5), "herding": (0.7, 0.6), "k-means": (0.6, 0.8), "dm": (0.9, 0.6 + ahead)}
    return [
        row(name, s, test + 0.001 * (s * place % 5), selected_accuracy=seen, ipc=ipc, label_type=kind)
        for place, (name, (seen, test)) in enumerate(sides.items(), 1)  # seeds in another order for each
        for s in seeds
    ]


def test_coresets_are_chosen_on_validation_data_and_never_by_their_test_accuracy(docs):
    page = docs("question_coresets").coresets_page(contest(1, 0.1))
    (line,) = cells_of(page, "1", "hard", "`herding`", "70.0")
    assert line[5] == "`dm`"
    assert line[8].startswith("+10.0 [")
    assert line[-1] == "5"
    assert "`k-means`" not in line


def test_more_seeds_of_some_methods_do_not_change_which_are_chosen(docs):
    """The seeds that all have choose: herding's later ones, which random images and k-means lack, cannot unseat it."""
    later = [r | {"selected_accuracy": 0.1} for r in contest(1, 0.1) if r["seed"] and r["matcher"] in ("herding", "dm")]
    page = docs("question_coresets").coresets_page([*contest(1, 0.1, range(1)), *later])
    (line,) = cells_of(page, "1", "hard", "`herding`", "70.0")
    assert (line[5], line[6], line[-1]) == ("`dm`", "90.0", "5")
    assert "at 1, the distilled set is ahead" in page
    assert "5 seeds; a CPU. Not every method has all of them: 1 or more." in page
    assert cells_of(page, "1", "hard", "3") == [["1", "hard", "3", "1", "0", "0", "2"]]  # one pair can be tested


def test_budgets_with_too_few_seeds_are_named_and_the_others_stated(docs):
    page = docs("question_coresets").coresets_page([*contest(1, 0.1), *contest(10, 0.1, range(2))])
    assert "- **Hard labels**: at 1, the distilled set is ahead." in page
    assert "- Not stated for want of seeds: at 10 (hard labels)." in page
    assert "No finding is stated" not in page


def test_methods_without_a_common_seed_are_no_contest(docs):
    rows = [r for r in contest(1, 0.1) if (r["seed"] == 0) == (r["matcher"] == "dm")]
    assert "No budget has both on record." in docs("question_coresets").coresets_page(rows)


def test_the_page_says_where_the_lines_cross(docs):
    ahead = [*contest(1, 0.1), *contest(10, 0.0)]
    assert "No line crosses the other." in docs("question_coresets").coresets_page(ahead)
    page = docs("question_coresets").coresets_page([*ahead, *contest(50, -0.1)])
    assert (
        "**Hard labels**: at 1, the distilled set is ahead; at 10, no difference shows; at 50, the coreset is ahead. "
        "The lines cross between 1 and 50 images per class. Learning stops paying between 1 and 10." in page
    )


def test_where_learning_stops_paying_is_behind_the_last_budget_at_which_it_pays(docs):
    stops = "Learning stops paying"
    gains = [*contest(1, 0.1), *contest(10, 0.0), *contest(50, 0.1)]
    assert stops not in docs("question_coresets").larger_page(gains)
    page = docs("question_coresets").larger_page([*gains, *contest(100, 0.0), *contest(200, 0.0)])
    assert f"No line crosses the other. {stops} between 50 and 100." in page
    assert stops not in docs("question_coresets").larger_page([*contest(1, 0.0), *contest(10, 0.0)])


def test_pairs_are_counted_in_both_directions(docs):
    page = docs("question_coresets").coresets_page(contest(1, 0.1))
    assert cells_of(page, "1", "hard", "3") == [["1", "hard", "3", "2", "1", "0", "0"]]  # k-means is above dm


def test_coresets_of_few_seeds_decide_nothing(docs):
    page = docs("question_coresets").coresets_page(contest(1, 0.3, range(3)))
    assert "**No finding is stated**" in page
    assert cells_of(page, "1", "hard", "3") == [["1", "hard", "3", "0", "0", "0", "3"]]


def test_what_was_selected_on_test_data_takes_no_part(docs):
    rows = [r | {"selection": "test"} if r["matcher"] == "dm" else r for r in contest(1, 0.1)]
    assert "No budget has both on record." in docs("question_coresets").coresets_page(rows)


def test_hard_and_soft_labels_are_never_compared(docs):
    rows = [r for r in contest(1, 0.1) if r["matcher"] != "dm"]
    rows += [r for r in contest(1, 0.1, kind="teacher") if r["matcher"] == "dm"]
    assert "No budget has both on record." in docs("question_coresets").coresets_page(rows)


# --- anybody's images ------------------------------------------------------------------------------------


def photographed(matcher: str, accuracy: float, images: int = 450, **more: Any) -> dict[str, Any]:
    place = {"dataset": "photos", "network": "convnet(width=16)", "protocol": "quick", "train_images": images, "n": 5}
    place |= {"dataset_digest": str(images), "run": f"{matcher}-{images}-{more}"}
    return row(matcher, 0, accuracy, accuracy_std=0.01, **place) | more


def test_what_is_above_random_images_is_bold_and_what_is_not_is_marked(docs):
    rows = [photographed("random", 0.5), photographed("dm", 0.51), photographed("tesla", 0.55)]
    page = docs("question_images").images_page([*rows, photographed("tesla", 0.4, scheduler="pdd")])
    titles, line = (cells_of(page, begin)[0] for begin in ("images", "450"))
    assert titles == ["images", "width", "ipc", "random", "dm", "tesla", "tesla under pdd", "whole set"]
    assert line == ["450", "16", "1", "50.0 ± 1.0", "51.0 ± 1.0 ‡", "**55.0 ± 1.0**", "40.0 ± 1.0 ‡", ""]
    assert "`tesla` is above random images in 1 of 1 cells." in page


def test_the_interval_is_that_of_welch(docs):
    module, Row = docs("question_images"), docs("question_tables").row_of
    one, other = (module.aggregate([Row(photographed(name, a))])[0] for name, a in (("dm", 0.52), ("random", 0.5)))
    found = module.apart(one, other)
    half = stats.t.ppf(0.975, 8) * (2 * 0.01**2 * 5 / 4 / 5) ** 0.5  # equal variances: 2 n - 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half))


def test_cells_where_random_images_are_near_the_whole_set_leave_nothing_to_gain(docs):
    near = [photographed("random", 0.96, whole=0.99), photographed("tesla", 0.9)]
    far = [photographed("random", 0.5, 5000, whole=0.99), photographed("tesla", 0.9, 5000)]
    page = docs("question_images").images_page([*near, *far])
    assert (
        "`tesla` is above random images in 1 of 2 cells; where these are below 95% of the whole set, in 1 of 1." in page
    )
    assert [line[-1] for line in cells_of(page, "450") + cells_of(page, "5,000")] == ["99.0", "99.0"]


def test_several_seeds_are_compared_by_their_means(docs):
    rows = [
        photographed(name, a + 0.01 * s, seed=s, run=f"{name}{s}")
        for name, a in (("random", 0.5), ("dm", 0.515))
        for s in range(5)
    ]
    module = docs("question_images")
    found = {line.row.matcher: line for line in module.aggregate([docs("question_tables").row_of(r) for r in rows])}
    assert module.apart(found["dm"], found["random"]).above is False  # though students of one seed alone would be
    assert "5 seeds, 5 students" in module.images_page(rows)


# --- stages ----------------------------------------------------------------------------------------------


def scheduled(seeds: range = SEEDS) -> list[dict[str, Any]]:
    """``dm``: restarts are 3 points above one stage, and stages 5 points below restarts."""
    gains = {"single": 0.0, "restarts": 0.03, "pdd": -0.02}
    return [
        row(
            "dm",
            s,
            0.6 + gain + 0.001 * (s * place % 5),
            scheduler=name,
            selected_accuracy=0.5,
            setting=f"dm {name}",
            stages=[{"first": 2.0, "last": 1.0, "change": -0.01 * s}] * (1 + (name == "pdd")),
        )
        for place, (name, gain) in enumerate(gains.items(), 1)
        for s in seeds
    ]


def test_the_page_on_stages_has_each_pair_of_schedules_and_says_what_is_due_to_stages(docs):
    page = docs("question_stages").stages_page(scheduled())
    assert "`dm`: `pdd` is below `single`; `restarts` is above `single`; `pdd` is below `restarts`." in page
    (line,) = cells_of(page, "`dm`", "`pdd` to `restarts`")
    assert line[2].startswith("-5.0 [")
    assert line[-1] == "5"
    assert [c[1] for c in cells_of(page, "`dm`") if c[1] in ("`single`", "`pdd`", "`restarts`")][:3] == [
        "`single`",
        "`pdd`",
        "`restarts`",
    ]
    stages = [c for c in cells_of(page, "`dm`", "`pdd`") if c[2] in ("1", "2") and len(c) == 6]
    assert stages == [["`dm`", "`pdd`", str(k), "2", "1", "3 of 5"] for k in (1, 2)]  # seeds 0, 1, 2 are flat


def test_few_seeds_of_schedules_decide_nothing(docs):
    page = docs("question_stages").stages_page(scheduled(range(2)))
    assert "**No finding is stated**" in page
    assert "is below" not in page
    assert "Nothing is on record yet." in docs("question_stages").stages_page([])
