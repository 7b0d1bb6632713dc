"""Students, trained and graded: for selection on validation data, and once on the test set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from torch import Tensor

from ddbench.cohort import MOST, trains_together
from ddbench.data import RealData
from ddbench.networks import Network
from ddbench.progress import report
from ddbench.protocols import Protocol
from ddbench.seeds import Seed
from ddbench.sets import Curriculum, SyntheticSet
from ddbench.starts import Starts, Teaching, teach, teach_together
from ddbench.training import Student, Watch, predict


def accuracy(network: Network, vector: Tensor, data: RealData) -> float:
    """The share of ``data`` that a student gets right."""
    return share_right(*predict(network, vector, data))


def share_right(logits: Tensor, targets: Tensor) -> float:
    """The share of rows whose largest logit ``(n, k)`` is that of the target ``(n,)``."""
    return float((logits.argmax(1) == targets).double().mean())


@dataclass(frozen=True, eq=False)
class Examinee:
    """A trained student as metrics see it: its vector ``(p,)``, the test data, its ``logits`` ``(n, k)`` on them.

    ``test`` passes through the set's own preprocessing. ``trail`` holds the vectors after the optimiser steps, of
    ``steps`` in all, that the metric's ``marks`` asked for, ascending.
    """

    network: Network
    vector: Tensor
    test: RealData
    logits: Tensor
    targets: Tensor
    trail: tuple[tuple[int, Tensor], ...] = ()
    steps: int = 0


@dataclass(frozen=True, eq=False)
class Pupil:
    """A student to be taught: what it learns, its randomness, and the optimiser steps after which it is kept."""

    student: Student
    curriculum: Curriculum
    seed: Seed
    marks: frozenset[int] = frozenset()
    trail: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def watch(self) -> Watch | None:
        def see(step: int, student: Student) -> None:
            self.trail.append((step, student.vector.detach().clone()))

        return Watch(self.marks, see) if self.marks else None


def taught(
    network: Network, pupils: Sequence[Pupil], teaching: Teaching, first: int = 0, *, together: bool
) -> Iterator[Student]:
    """Each pupil after all phases from ``first`` on, in order; ``together``, in groups of at most ``MOST``."""
    if not together:
        for p in pupils:
            yield teach(network, p.student, p.curriculum, teaching, p.seed, first, p.watch)
        return
    for i in range(0, len(pupils), MOST):
        group = pupils[i : i + MOST]
        yield from teach_together(
            network, [p.student for p in group], [p.curriculum for p in group], teaching, [p.seed for p in group],
            first, [p.watch for p in group],
        )  # fmt: skip


def look_steps(curriculum: Curriculum, teaching: Teaching, protocol: Protocol) -> frozenset[int]:
    """The optimiser steps after which a protocol with ``looks`` looks at a student: in the last phase, and its end."""
    if protocol.looks is None:
        return frozenset()
    last = len(curriculum.phases) - 1
    total, own = teaching.total(curriculum), teaching.steps_of(last, curriculum)
    every = protocol.looks * own // (teaching.lesson(last).epochs or 1)
    begin = max(every, math.ceil(protocol.looks_after * own))
    return frozenset({*(total - own + step for step in range(begin, own + 1, every)), total})


@dataclass(frozen=True)
class Verdict:
    """What selection found for one candidate: its best student lr, and the mean accuracy there, if one was measured."""

    lr: float
    accuracy: float | None
    tried: dict[str, float]  # lr -> mean accuracy


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
    the next phase with every lr of the grid and the candidate's own. The best mean wins, the smallest lr
    among equals.
    """
    own = [candidate.lr] if candidate.lr is not None else []
    grid = sorted({*protocol.lrs, *own}) or [students.teaching.recipe.lr]
    trials = {lr: Curriculum((*done.sets, replace(candidate, lr=lr)), phases) for lr in grid}
    begins = [students.student(i) for i in range(protocol.judges)]
    scores = _scores(students, begins, trials, data, protocol, first=len(phases) - 1)
    best = max(grid, key=lambda lr: (scores[lr], -lr))
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
    together = trains_together(network, teaching.recipe)
    graded = []
    for pupil, after in zip(pupils, taught(network, pupils, teaching, first, together=together), strict=True):
        seen = [vector for _, vector in pupil.trail] or [after.vector]
        graded.append(max(accuracy(network, vector, data) for vector in seen))
        pupil.trail.clear()
        if len(graded) % len(begins) == 0:
            report("selection", len(graded) // len(begins), len(trials), accuracy=mean(graded[-len(begins) :]))
    return {name: mean(graded[j * len(begins) : (j + 1) * len(begins)]) for j, name in enumerate(trials)}


def grade(
    curriculum: Curriculum,
    network: Network,
    teaching: Teaching,
    test: RealData,
    metrics: dict[str, Any],
    seed: Seed,
    students: Sequence[int],
    *,
    protocol: Protocol | None = None,
    together: bool = False,
) -> Iterator[dict[str, float]]:
    """Train fresh students on a curriculum and measure each once on the test set.

    Yields a dictionary of numbers for each student whose index is in ``students``. Student i is initialised from
    ``seed / i``: no two share an initialisation, and none was seen in distillation. Where the ``protocol`` looks at
    students on the way, the best look is what counts.
    """
    total, looks = teaching.total(curriculum), look_steps(curriculum, teaching, protocol or Protocol())
    asked = frozenset(step for m in metrics.values() for step in _marks(m, total))
    pupils = [Pupil(Student(network.init(seed / i / "init")), curriculum, seed / i, looks | asked) for i in students]
    for pupil, after in zip(pupils, taught(network, pupils, teaching, together=together), strict=True):
        seen = [vector for step, vector in pupil.trail if step in looks] or [after.vector]
        found = max(((*predict(network, v, test), v) for v in seen), key=lambda one: share_right(one[0], one[1]))
        trail = tuple((step, vector) for step, vector in pupil.trail if step in asked)
        yield measured(Examinee(network, found[2], test, found[0], found[1], trail, total), metrics)
        pupil.trail.clear()
        report("evaluation", pupils.index(pupil) + 1, len(pupils))


def _marks(metric: Any, steps: int) -> set[int]:
    return {step for step in metric.marks(steps) if 0 < step <= steps} if hasattr(metric, "marks") else set()


def measured(student: Examinee, metrics: dict[str, Any]) -> dict[str, float]:
    """What the metrics say of a student; accuracy always. A number that is not finite counts as not known."""
    numbers = {"accuracy": share_right(student.logits, student.targets)}
    if not student.logits.isfinite().all():
        return numbers | {"diverged": 1.0}  # what it answers is chance, and no other metric has a value
    for name, metric in metrics.items():
        if hasattr(metric, "examine"):
            marks = _marks(metric, student.steps)
            own = replace(student, trail=tuple(mark for mark in student.trail if mark[0] in marks))
            numbers |= {f"{name}.{key}": float(value) for key, value in metric.examine(own).items()}
        else:
            numbers[name] = float(metric(student.logits, student.targets))
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
