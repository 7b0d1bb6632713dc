"""Whether a result is above random images: the interval, which images count, what is said and what is stored."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ddbench.base.cache import file_digest, lock, write_json
from ddbench.run import below
from ddbench.run.below import Gap, Sample, gap, sentence, verdict
from ddbench.run.record import RandomRecord, ResultRecord
from ddbench.run.row import Row


def row(scores: list[float], matcher: str = "tesla", **more: Any) -> Row:
    """A graded run with these students."""
    base: dict[str, Any] = {
        "dataset": "toy",
        "dataset_digest": "d" * 8,
        "matcher": matcher,
        "scheduler": "single",
        "network": "convnet",
        "ipc": 1,
        "seed": 0,
        "protocol": "default",
        "protocol_digest": "aaaa",
        "label_type": "hard",
        "status": "ok",
        "accuracy_mean": fmean(scores),
        "accuracy_std": pstdev(scores) if len(scores) > 1 else None,
        "n": len(scores),
        "run": f"toy-{matcher}",
        "distil_network": "convnet",
        "distil_rules": "aaaa",
    }
    return Row(**base | more)


LOW, HIGH = [0.289, 0.291, 0.285, 0.295, 0.290], [0.309, 0.311, 0.305, 0.312, 0.308]


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_is_welchs_as_scipy_has_it(seed):
    draw = np.random.default_rng(seed)
    a = draw.normal(0.5, 0.1 * draw.random() + 1e-3, draw.integers(2, 9))
    b = draw.normal(0.45, 0.1 * draw.random() + 1e-3, draw.integers(2, 9))
    due = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = gap(Sample.of(a.tolist()), Sample.of(b.tolist()))
    assert found.difference == pytest.approx(a.mean() - b.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((due.low, due.high), rel=1e-11)
    assert found.above is bool(due.low > 0)
    # of a run, tables keep the mean and the deviation of a population
    of_rows = gap(Sample.of_row(row(a.tolist())), Sample.of_row(row(b.tolist())))
    assert (of_rows.low, of_rows.high) == pytest.approx((due.low, due.high), rel=1e-11)


def test_the_interval_of_one_student_is_not_known():
    for one, other in (([0.9], LOW), (HIGH, [0.1]), ([0.9], [0.1])):
        found = gap(Sample.of(one), Sample.of(other))
        assert found == Gap(pytest.approx(fmean(one) - fmean(other)))
        assert found.above is None
        assert gap(Sample.of_row(row(one)), Sample.of_row(row(other))).above is None


def test_where_nothing_varies_the_interval_has_no_width():
    for one, other, above in ((0.5, 0.4, True), (0.4, 0.5, False), (1.0, 1.0, False)):
        found = gap(Sample.of([one] * 3), Sample.of([other] * 2))
        assert (found.low, found.high, found.above) == (found.difference, found.difference, above)


def test_an_interval_that_begins_at_zero_is_not_above():
    assert Gap(0.1, 0.0, 0.2).above is False
    assert Gap(0.1, 1e-9, 0.2).above is True


def test_of_several_kinds_one_that_is_not_beaten_decides():
    assert verdict([True, False, None]) is False
    assert verdict([True, None]) is None
    assert verdict([True, True]) is True
    assert verdict([]) is None


@pytest.mark.parametrize(
    ("own", "random", "counts"),
    [
        ({}, {}, True),
        ({}, {"label_type": "teacher"}, False),
        ({"label_type": "learned"}, {"label_type": "teacher"}, True),
        ({"label_type": "learned"}, {}, True),
        ({}, {"options": {"decoder.factor": 2}}, False),
        ({"options": {"decoder.factor": 2}}, {"options": {"decoder.factor": 2}}, True),
        ({"options": {"decoder.factor": 2}}, {}, True),
        ({"matcher": "herding"}, {}, True),
        ({"matcher": "random", "scheduler": "pdd"}, {}, False),
        ({}, {"scheduler": "pdd"}, False),
        ({}, {"seed": 1}, False),
        ({}, {"ipc": 10}, False),
        ({}, {"network": "vgg11"}, False),
        ({}, {"protocol_digest": "bbbb"}, False),
        ({}, {"dataset_digest": "other"}, False),
        ({}, {"status": "diverged"}, False),
        ({"status": "diverged"}, {}, False),
        ({}, {"matcher": "herding"}, False),
    ],
)
def test_the_random_images_of_a_run_are_those_of_its_budget(own, random, counts):
    made = row(LOW, **{"matcher": "tesla"} | own)
    assert bool(below.compare(made, [made, row(HIGH, **{"matcher": "random"} | random)])) is counts


def test_random_images_that_were_graded_twice_count_once_with_most_students():
    beside = [row(HIGH[:2], "random"), row(HIGH, "random"), row(HIGH + HIGH, "random", evaluation_seed=7)]
    (found,) = below.compare(row(LOW), beside)
    assert (found.n, found.above) == (5, False)
    assert found.accuracy_mean == pytest.approx(fmean(HIGH))
    assert found.accuracy_std == pytest.approx(pstdev(HIGH))


def test_a_run_is_graded_by_its_own_network_and_rules():
    rows = [row(LOW), row(HIGH + HIGH, network="vgg11"), row(HIGH + HIGH, protocol_digest="bbbb"), row(LOW[:2])]
    assert below.own(rows) is rows[0]
    assert below.own([row(LOW, status="diverged")]) is None


def said(scores: list[float], *others: Row, **more: Any) -> str:
    made = row(scores, **more)
    return sentence(made, below.compare(made, others))


def test_the_sentence_has_both_numbers_the_interval_and_the_way_out():
    random = row(HIGH, "random")
    due = stats.ttest_ind(LOW, HIGH, equal_var=False).confidence_interval(0.95)
    assert said(LOW, random) == (
        "warning: toy-tesla reaches 29.0 %, which is below random images of the same budget (hard labels: 30.9 %, "
        f"difference -1.9 points, 95 % interval [{100 * due.low:+.1f}, {100 * due.high:+.1f}], Welch, 5 and 5 "
        "students): try other options, such as more iterations or another step size; `ddbench info tesla` lists them, "
        'and docs/comparing.md, "Above random images", says where to look'
    )
    assert "which is not above random images" in said(HIGH[::-1], random)
    assert "which is not above random images" in said([s + 0.001 for s in HIGH], random)
    assert said([s + 0.05 for s in HIGH], random) == ""
    assert said(LOW, random, matcher="random") == ""


def test_the_sentence_names_the_kinds_that_are_not_beaten():
    hard, teacher = row(LOW, "random"), row(HIGH, "random", label_type="teacher", run="other")
    packed = row(HIGH, "random", options={"decoder.factor": 2}, run="packed")
    text = said(HIGH, hard, teacher, label_type="learned")
    assert "teacher labels: 30.9 %" in text
    assert "hard labels" not in text
    assert "(hard labels, decoder.factor=2: 30.9 %" in said(HIGH, hard, packed, options={"decoder.factor": 2})


def test_what_is_not_known_is_said_without_a_warning():
    assert said([0.9], row([0.1], "random")) == (
        "toy-tesla reaches 90.0 % (random images with hard labels 10.0 %); whether it is above them is not known, "
        "because one student has no interval: --students 5 gives one"
    )
    assert "it is not known how it compares" in said(LOW, row(HIGH, "random", status="diverged"))


def test_the_result_of_a_run_holds_it_and_nothing_else_in_it_changes(tmp_path):
    before = {"status": "ok", "sha256": {"spec.json": "abc"}, "distil_seconds": 1, "new": {"of": "later"}}
    write_json(tmp_path / "result.json", before, sealed=True)
    made = row(LOW)
    found = below.compare(made, [row(HIGH, "random")])
    below.store(tmp_path, found)
    held = ResultRecord.from_file(tmp_path / "result.json")  # and its seal is right
    assert held.random == found
    assert {n: v for n, v in held.json_value().items() if n != "random"} == before
    (told,) = json.loads((tmp_path / "result.json").read_text())["random"]
    assert (told["run"], told["n"], told["above"], told["label_type"]) == ("toy-random", 5, False, "hard")
    assert told["low"] < told["difference"] < told["high"] < 0
    assert told["accuracy_mean"] == fmean(HIGH)


def test_what_is_stored_is_not_stored_again(tmp_path):
    write_json(tmp_path / "result.json", {"status": "ok"}, sealed=True)
    below.store(tmp_path, [])
    assert ResultRecord.from_file(tmp_path / "result.json").json_value() == {"status": "ok"}
    found = below.compare(row(LOW), [row(HIGH, "random")])
    below.store(tmp_path, found)
    path = tmp_path / "result.json"
    first = (path.stat().st_ino, file_digest(path))
    below.store(tmp_path, found)
    assert (path.stat().st_ino, file_digest(path)) == first


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    write_json(tmp_path / "result.json", {"status": "ok"}, sealed=True)
    with lock(tmp_path / ".lock"):
        below.store(tmp_path, below.compare(row(LOW), [row(HIGH, "random")]))
    assert ResultRecord.from_file(tmp_path / "result.json").random == []


def test_records_of_earlier_versions_are_read_as_runs_of_which_nothing_is_known(tmp_path: Path):
    write_json(tmp_path / "result.json", {"status": "ok"})
    assert ResultRecord.from_file(tmp_path / "result.json").random == []
    assert RandomRecord(accuracy_mean=0.5, difference=0.1).above is None


def test_experts_that_know_less_than_half_of_what_random_images_teach_are_told(tmp_path):
    """Between chance, 10 %, and the 30 % that random images teach, half-way is 20 %."""
    record = RandomRecord(accuracy_mean=0.3, difference=-0.1, label_type="hard")
    softer = RandomRecord(accuracy_mean=0.9, difference=-0.1, label_type="teacher")

    def result(*best: float) -> ResultRecord:
        stages = [{"experts": {"epochs": [0, 2], "accuracies": [0.1, b], "images": 100}} for b in best]
        return ResultRecord.model_validate({"status": "ok", "stages": stages})

    said = below.weak_experts(result(0.2), 10, [record, softer])
    assert said
    assert (
        "its experts classify 20.0 % of validation images right at best, and random images teach students 30.0 %"
        in said
    )
    assert below.weak_experts(result(0.21), 10, [record]) is None
    assert (
        below.weak_experts(result(0.3, 0.1), 10, [record]) is None
    )  # later stages' experts go on from taught networks
    for unknown in (result(), ResultRecord(status="ok")):
        assert below.weak_experts(unknown, 10, [record]) is None
    assert below.weak_experts(result(0.1), None, [record]) is None
    assert below.weak_experts(result(0.1), 10, [softer]) is None
    write_json(tmp_path / "result.json", result(0.2).json_value() | {"warnings": ["first"]}, sealed=True)
    for _ in range(2):
        below.store(tmp_path, [record], said)
    assert ResultRecord.from_file(tmp_path / "result.json").warnings == ["first", said]
