"""What is selected, on which data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import pytest
from tiny import run, spec

from ddbench import Curriculum, Network, Seed, Starts, SyntheticSet
from ddbench.base.cache import read_json
from ddbench.base.progress import listening
from ddbench.grade.distilled import Distilled
from ddbench.grade.protocol import Protocol
from ddbench.grade.selection import best_lr, judge
from ddbench.grade.student import accuracy
from ddbench.problem.starts import learn_phase
from ddbench.run.record import RunRecord
from ddbench.run.row import Row
from ddbench.run.run import Run, Settings


def made(tmp_path: Path, **rules) -> tuple[Row, Path]:
    base = spec("random", "single", 1)
    folder = run(tmp_path, replace(base, protocol=replace(base.protocol, **rules)), students=1)
    return RunRecord.read(folder).rows()[0], folder


@pytest.mark.parametrize("selects", ["validation", "test"])
def test_a_run_is_judged_on_the_data_that_its_protocol_names_and_says_so(tmp_path, selects):
    base = spec("random", "single", 1)
    rules = replace(base.protocol, selects=selects)
    work = Run(replace(base, protocol=rules), base.dataset.load(), Settings(tmp_path))
    part = getattr(work.dataset, selects)
    seen = []

    def noted(_network, _vector, data) -> float:
        seen.append(data.digest)
        return 0.5

    work.folder.mkdir(parents=True)
    with patch("ddbench.grade.selection.accuracy", noted):
        work.distil()
    assert set(seen) == {part.digest}
    row, folder = made(tmp_path / "whole", selects=selects)
    assert row.selection == selects
    assert Distilled.load(folder / "distilled.safetensors").about["selection"] == selects
    assert read_json(folder / "result.json")["selection"] == selects


def test_where_nothing_is_selected_no_judge_trains_and_the_last_checkpoint_is_kept(tmp_path):
    with patch("ddbench.run.stage.judge", side_effect=AssertionError("a judge was trained")):
        row, folder = made(tmp_path, selects="last", lrs=(), checks=1, lr=0.02)
    assert row.selection == "last"
    (found,) = Distilled.load(folder / "distilled.safetensors").curriculum.sets
    assert found.lr == 0.02
    notes = read_json(folder / "stage-0" / "result.json")
    assert [check["accuracy"] for check in notes["checks"]] == [None]


def test_of_equally_good_learning_rates_the_smallest_is_chosen():
    assert best_lr({0.3: 0.5, 0.01: 0.7, 0.1: 0.7, 0.03: 0.7}) == 0.01
    assert best_lr({0.01: 0.5, 0.1: 0.7}) == 0.1


@pytest.mark.parametrize("own", [None, 0.05, 0.4])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_candidate_is_judged_by_what_its_judges_learn_in_the_phase_that_it_adds(cache, stage, own):
    """With each lr of the grid and its own, after the phases before; by hand, student by student."""
    dataset = spec("random").dataset.load()
    network = Network(spec("random").network, dataset.train.shape, dataset.train.classes)
    shown = dataset.train.draw(2)
    earlier, candidate = (
        SyntheticSet(shown.images[::2], shown.labels[::2], 0.03),
        SyntheticSet(shown.images, shown.labels, own),
    )
    done = Curriculum((earlier,), ((0,),)) if stage else Curriculum()
    phases = ((0,), (0, 1))[: stage + 1]
    rules = Protocol(steps=8, batch=4, lrs=(0.001, 0.05), judges=3, augment="")
    students = Starts(network, Seed(3), rules.evaluation(6, 2), cache, taught=done, count=3)
    seen: list[tuple] = []
    with listening(lambda e: seen.append((e.done, e.total, e.numbers["accuracy"])) if e.what == "selection" else None):
        verdict = judge(candidate, done, phases, students, dataset.validation, rules)
    by_hand = {}
    for lr in sorted({0.001, 0.05, own or 0.05}):
        plan = Curriculum((*done.sets, replace(candidate, lr=lr)), phases)
        taught = [
            learn_phase(network, students.student(i), plan, stage, students.teaching, students.seed / i)
            for i in range(3)
        ]
        by_hand[repr(lr)] = mean(accuracy(network, student.vector, dataset.validation) for student in taught)
    assert verdict.tried == by_hand
    assert verdict.accuracy == max(by_hand.values()) == by_hand[repr(verdict.lr)]
    assert seen == [(i + 1, len(by_hand), score) for i, score in enumerate(by_hand.values())]
    assert {type(done) for done, *_ in seen} == {int}


def test_who_brings_no_learning_rate_where_none_is_tried_learns_with_the_recipes(cache):
    dataset = spec("random").dataset.load()
    network = Network(spec("random").network, dataset.train.shape, dataset.train.classes)
    rules = Protocol(steps=2, batch=4, lr=0.07, lrs=(), judges=1, augment="")
    students = Starts(network, Seed(3), rules.evaluation(3, 1), cache)
    shown = dataset.train.draw(1)
    candidate = SyntheticSet(shown.images, shown.labels)
    verdict = judge(candidate, Curriculum(), ((0,),), students, dataset.validation, rules)
    assert verdict.lr == 0.07
    assert list(verdict.tried) == ["0.07"]
