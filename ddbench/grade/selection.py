"""Selection: the student lr, and with it the candidate, that does best on the data that a protocol selects on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from ddbench.base.progress import report
from ddbench.data.dataset import RealData
from ddbench.grade.protocol import Protocol
from ddbench.grade.student import Pupil, accuracy, look_steps, taught_pupils
from ddbench.problem.starts import Starts
from ddbench.problem.synthetic import Curriculum, SyntheticSet, first_with
from ddbench.train.fit import Student
from ddbench.train.fit_together import trains_together


@dataclass(frozen=True)
class Verdict:
    """What selection found for one candidate: its best student lr, and the mean accuracy there, if one was measured."""

    lr: float
    accuracy: float | None
    tried: dict[str, float]  # lr -> mean accuracy


def best_lr(scores: Mapping[float, float]) -> float:
    """The student lr with the largest accuracy, the smallest among equals."""
    return max(scores, key=lambda lr: (scores[lr], -lr))


def judge(
    candidate: SyntheticSet,
    done: Curriculum,
    phases: tuple[tuple[int, ...], ...],
    students: Starts,
    data: RealData,
    protocol: Protocol,
) -> Verdict:
    """Try student learning rates for a candidate set on the ``data`` that the protocol selects on.

    ``students`` are start networks taught the earlier sets; each of the protocol's first ``judges`` of them learns
    the phases that the candidate is in with every lr of the grid and the candidate's own. The best mean wins, the
    smallest lr among equals.
    """
    own = [candidate.lr] if candidate.lr is not None else []
    grid = sorted({*protocol.lrs, *own}) or [students.teaching.recipe.lr]
    trials = {lr: Curriculum((*done.sets, replace(candidate, lr=lr)), phases) for lr in grid}
    begins = [students.student(i) for i in range(protocol.judges)]
    scores = _scores(students, begins, trials, data, protocol, first=first_with(len(done), phases))
    best = best_lr(scores)
    return Verdict(best, scores[best], {repr(lr): scores[lr] for lr in grid})


def tuned(
    curriculum: Curriculum, students: Starts, data: RealData, protocol: Protocol
) -> tuple[str | None, dict[str, float]]:
    """The student lr that does best on ``data``, and what was tried: name -> mean accuracy.

    For a set that was selected for another network or under other rules, or by others. ``own`` are the sets' own
    learning rates, where all have one; any other name is a number, and serves all sets. None where the protocol
    tries nothing and trusts the sets. ``students`` are fresh.
    """
    own = {s.lr for s in curriculum.sets}
    trials = {repr(lr): curriculum.at(lr) for lr in sorted(protocol.lrs) if own != {lr}}
    if None not in own:
        trials["own"] = curriculum
    if not protocol.lrs:
        return None, {}
    begins = [students.student(i) for i in range(protocol.judges)]
    scores = _scores(students, begins, trials, data, protocol, first=0)
    return max(trials, key=lambda name: (scores[name], name == "own")), scores


def at_chosen(curriculum: Curriculum, chosen: str | None) -> Curriculum:
    """The curriculum at what :func:`tuned` chose."""
    return curriculum if chosen in ("own", None) else curriculum.at(float(chosen))


def _scores(
    students: Starts,
    begins: list[Student],
    trials: dict[Any, Curriculum],
    data: RealData,
    protocol: Protocol,
    first: int,
) -> dict[Any, float]:
    """For each trial the mean accuracy of its judges."""
    network, teaching = students.network, students.teaching
    marks = {name: look_steps(trial, teaching, protocol) for name, trial in trials.items()}
    if first:  # the steps of a watch count from the first phase that is taught
        before = {name: sum(teaching.steps_of(j, t) for j in range(first)) for name, t in trials.items()}
        marks = {name: frozenset(step - before[name] for step in steps) for name, steps in marks.items()}
    pupils = [Pupil(b, t, students.seed / i, marks[name]) for name, t in trials.items() for i, b in enumerate(begins)]
    largest = max(teaching.largest_batch(trial) for trial in trials.values())
    together = trains_together(network, teaching.recipe, largest)
    graded = []
    for pupil, after in zip(pupils, taught_pupils(network, pupils, teaching, first, together=together), strict=True):
        seen = [vector for _, vector in pupil.trail] or [after.vector]
        graded.append(max(accuracy(network, vector, data) for vector in seen))
        pupil.trail.clear()
        if len(graded) % len(begins) == 0:
            report("selection", len(graded) // len(begins), len(trials), accuracy=mean(graded[-len(begins) :]))
    return {name: mean(graded[j * len(begins) : (j + 1) * len(begins)]) for j, name in enumerate(trials)}
