"""Students: trained on a curriculum, looked at on the way, and measured once on the test set."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ddbench.base.guard import guarded
from ddbench.base.progress import report
from ddbench.base.seeds import Seed
from ddbench.data.dataset import RealData
from ddbench.data.untouched import Untouched
from ddbench.errors import PluginError, UsageError
from ddbench.grade.protocol import Protocol
from ddbench.hookspecs import Examinee, Examining, Metric, Scoring
from ddbench.plugins import marks
from ddbench.problem.starts import Teaching, teach, teach_together
from ddbench.problem.synthetic import Curriculum
from ddbench.train.fit import Student, Watch, predict
from ddbench.train.fit_together import TOGETHER
from ddbench.train.network import Network

NOTHING = (
    "there are no validation images to select on (dataset.validation=0); hold some out, or take a protocol that "
    "selects on test data"
)
_KEY = re.compile(r"[A-Za-z0-9_][\w .:/()%@+-]{0,63}")  # of a number that a metric names


def accuracy(network: Network, vector: Tensor, data: RealData) -> float:
    """The share of ``data`` that a student gets right. Raises UsageError where there are none."""
    if not len(data):
        raise UsageError(NOTHING)
    return share_right(*predict(network, vector, data))


def share_right(logits: Tensor, targets: Tensor) -> float:
    """The share of rows whose largest logit ``(n, k)`` is that of the target ``(n,)``."""
    return float((logits.argmax(1) == targets).double().mean())


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


def taught_pupils(
    network: Network, pupils: Sequence[Pupil], teaching: Teaching, first: int = 0, *, together: bool
) -> Iterator[Student]:
    """Each pupil after all phases from ``first`` on, in order; ``together``, in groups of at most ``MOST``."""
    if not together:
        for p in pupils:
            yield teach(network, p.student, p.curriculum, teaching, p.seed, first, p.watch)
        return
    for i in range(0, len(pupils), TOGETHER):
        group = pupils[i : i + TOGETHER]
        yield from teach_together(
            network,
            [p.student for p in group],
            [p.curriculum for p in group],
            teaching,
            [p.seed for p in group],
            first,
            [p.watch for p in group],
        )


def look_steps(curriculum: Curriculum, teaching: Teaching, protocol: Protocol) -> frozenset[int]:
    """The optimiser steps after which a protocol with ``looks`` looks at a student: in the last phase, and its end."""
    if protocol.looks is None:
        return frozenset()
    last = len(curriculum.phases) - 1
    total, own = teaching.total(curriculum), teaching.steps_of(last, curriculum)
    every = protocol.looks * own // (teaching.lesson(last).epochs or 1)
    begin = max(every, math.ceil(protocol.looks_after * own))
    return frozenset({*(total - own + step for step in range(begin, own + 1, every)), total})


def measured_students(
    curriculum: Curriculum,
    network: Network,
    teaching: Teaching,
    test: RealData,
    metrics: Mapping[str, Metric],
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
    asked = frozenset(step for m in metrics.values() for step in marks(m, total))
    pupils = [Pupil(Student(network.init(seed / i / "init")), curriculum, seed / i, looks | asked) for i in students]
    for pupil, after in zip(pupils, taught_pupils(network, pupils, teaching, together=together), strict=True):
        seen = [vector for step, vector in pupil.trail if step in looks] or [after.vector]
        found = max(((*predict(network, v, test), v) for v in seen), key=lambda one: share_right(one[0], one[1]))
        trail = tuple((step, vector) for step, vector in pupil.trail if step in asked)
        yield measured(Examinee(network, found[2], test, *found[:2], trail, total), metrics)
        pupil.trail.clear()
        report("evaluation", pupils.index(pupil) + 1, len(pupils))


def measured(student: Examinee, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """What the metrics say of a student; accuracy always. A number that is not finite counts as not known."""
    numbers = {"accuracy": share_right(student.logits, student.targets)}
    if not student.logits.isfinite().all():
        return numbers | {"diverged": 1.0}  # what it answers is chance, and no other metric has a value
    for name, metric in metrics.items():
        if isinstance(metric, Examining):
            numbers |= {f"{name}.{key}": value for key, value in _examined(student, metric).items()}
        elif isinstance(metric, Scoring):
            with guarded(f"metric {metric.name!r}"):
                numbers[name] = float(metric(student.logits.clone(), student.targets.clone()))
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _examined(student: Examinee, metric: Examining) -> dict[str, float]:
    """What a metric says of copies of a student, and of test data that it leaves as they are."""
    asked, name = marks(metric, student.steps), metric.name  # type: ignore[attr-defined]
    copies = {part: getattr(student, part).clone() for part in ("vector", "logits", "targets")}
    trail = tuple((step, vector.clone()) for step, vector in student.trail if step in asked)
    lent = Untouched({"test": student.test})
    with guarded(f"examine() of metric {name!r}"):
        numbers = metric.examine(replace(student, trail=trail, **copies))
        found = {key: float(value) for key, value in numbers.items()}
    if changed := lent.changed_content():
        raise PluginError(f"examine() of metric {name!r} changed {changed}, which other students are tested on")
    if odd := next((key for key in found if not (isinstance(key, str) and _KEY.fullmatch(key))), None):
        raise PluginError(f"examine() of metric {name!r} names a number {odd!r:.80}; a name is a word")
    return found
