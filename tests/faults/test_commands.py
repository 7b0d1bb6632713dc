"""Commands in forked processes: they end as chosen, and what they did is told as it was."""

from __future__ import annotations

import json
from signal import SIGKILL

import pytest

from ddbench.testing.faults.cells import Cell, Reference, cells, outcome, rows
from ddbench.testing.faults.commands import Answer, Command, Moment

CELL = Cell("random", "single")


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    """A cell that nobody disturbed."""
    return Reference.of(CELL, tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_command_tells_its_exit_code_and_both_outputs(tmp_path):
    answer = Command(["run", "--matcher", "telsa"], tmp_path).run()
    assert (answer.code, answer.out, answer.broken) == (2, "", "")
    assert answer.refused
    assert "did you mean 'tesla'" in answer.said


def test_an_undisturbed_run_has_a_set_grades_and_operations(reference):
    ((name, (sha256, _, grades)),) = reference.outcome.items()
    assert name.startswith("toy-random-single-")
    assert len(sha256) == 64
    assert [len(students) for students in grades.values()] == [2]
    assert reference.operations > 50
    assert reference.answer.peak > 10_000_000
    assert [row["accuracy_mean"] > 0 for row in rows(reference.answer)] == [True]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_command_is_killed_before_the_operation_that_was_chosen(reference, tmp_path, share):
    moment = Moment(int(reference.operations * share))
    answer = Command(CELL.words, tmp_path).run(moment)
    assert answer.code == -SIGKILL
    assert not answer.hung
    assert Command(CELL.words, tmp_path).run().code == 0
    assert outcome(tmp_path) == reference.outcome


def test_a_moment_after_the_last_operation_never_comes(reference, tmp_path):
    assert Command(CELL.words, tmp_path).run(Moment(reference.operations + 1)).code == 0


def test_a_command_is_killed_after_the_seconds_that_were_chosen(tmp_path):
    answer = Command(CELL.words, tmp_path).run(Moment(seconds=0.01))
    assert answer.code == -SIGKILL
    assert not answer.hung


def test_a_command_that_outlasts_its_limit_hangs(tmp_path):
    answer = Command(CELL.words, tmp_path, limit=0.01).run()
    assert answer.hung
    assert answer.broken.startswith("hung")


def test_a_full_disk_is_a_sentence_and_not_the_end_of_the_run(reference, tmp_path):
    answer = Command(CELL.words, tmp_path).run(Moment(reference.operations // 2, what="full"))
    assert answer.code == 3
    assert answer.refused, answer.err
    assert Command(CELL.words, tmp_path).run().code == 0
    assert outcome(tmp_path) == reference.outcome


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (Answer(0, "", "warning", 1, 1), ""),
        (Answer(3, "", "error: no such file", 1, 1), ""),
        (Answer(1, "", "Traceback (most recent call last):\n  x\nKeyError: 'a'", 1, 1), "traceback: KeyError: 'a'"),
        (Answer(-11, "", "", 1, 1), "exit code -11"),
        (Answer(120, "", "", 1, 1), "exit code 120"),
        (Answer(-9, "", "", 5.0, 1, hung=True), "hung for 5.0 s"),
    ],
)
def test_what_no_input_may_cause_is_told_from_what_it_may(answer, broken):
    assert answer.broken == broken
    assert answer.refused == (answer.code == 3)


def test_all_matchers_meet_all_schedulers():
    pairs = {(cell.matcher, cell.scheduler) for cell in cells()}
    assert {("tesla", "pdd"), ("random", "boost"), ("frepo", "seqmatch"), ("sre2l", "single")} <= pairs
    assert len(pairs) == len({m for m, _ in pairs}) * len({s for _, s in pairs})


def test_costs_are_no_part_of_what_must_be_equal():
    row = {"accuracy_mean": 0.5, "distil_seconds": 3.0, "peak_bytes": 7, "device": "cpu"}
    assert rows(Answer(0, json.dumps([row]), "", 1, 1)) == [{"accuracy_mean": 0.5}]
    assert rows(Answer(3, "", "error: x", 1, 1)) is None
