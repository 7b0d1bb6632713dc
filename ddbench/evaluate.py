"""Students, trained and graded: for selection on validation data, and once on the test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean, pstdev
from typing import Any

from torch import Tensor

from ddbench.data import RealData
from ddbench.networks import Network
from ddbench.progress import report
from ddbench.seeds import Seed
from ddbench.sets import Curriculum, SyntheticSet
from ddbench.starts import Starts, Teaching, learn_phase, teach
from ddbench.training import Student, predict


def accuracy(network: Network, vector: Tensor, data: RealData) -> float:
    """The share of ``data`` that a student gets right."""
    return share_right(*predict(network, vector, data))


def share_right(logits: Tensor, targets: Tensor) -> float:
    """The share of rows whose largest logit ``(n, k)`` is that of the target ``(n,)``."""
    return float((logits.argmax(1) == targets).double().mean())


@dataclass(frozen=True)
class Verdict:
    """What selection found for one candidate: its best student lr, and the mean validation accuracy there."""

    lr: float
    accuracy: float
    tried: dict[str, float]  # lr -> mean accuracy


def judge(
    candidate: SyntheticSet,
    done: Curriculum,
    phases: tuple[tuple[int, ...], ...],
    students: Starts,
    validation: RealData,
    lrs: tuple[float, ...],
    judges: int,
) -> Verdict:
    """Try student learning rates for a candidate set on validation data.

    ``students`` are start networks taught the earlier sets; each of the first ``judges`` of them learns
    the next phase with every lr of the grid and the candidate's own. The best mean wins, the smallest lr
    among equals.
    """
    own = [candidate.lr] if candidate.lr is not None else []
    grid = sorted({*lrs, *own}) or [students.teaching.recipe.lr]
    tried: dict[str, float] = {}
    for lr in grid:
        trial = Curriculum((*done.sets, replace(candidate, lr=lr)), phases)
        phase = len(phases) - 1
        scores = []
        for i in range(judges):
            seed = students.seed / i
            after = learn_phase(students.network, students.student(i), trial, phase, students.teaching, seed)
            scores.append(accuracy(students.network, after.vector, validation))
        tried[repr(lr)] = mean(scores)
        report("selection", len(tried), len(grid), accuracy=tried[repr(lr)])
    best = max(grid, key=lambda lr: (tried[repr(lr)], -lr))
    return Verdict(best, tried[repr(best)], tried)


def grade(
    curriculum: Curriculum,
    network: Network,
    teaching: Teaching,
    test: RealData,
    metrics: dict[str, Any],
    seed: Seed,
    students: int,
    done: int = 0,
) -> Iterator[dict[str, float]]:
    """Train fresh students on a curriculum and measure each once on the test set.

    Yields a dictionary of metrics per student, from student ``done`` on. Student i is initialised from
    ``seed / i``: no two share an initialisation, and none was seen in distillation.
    """
    for i in range(done, students):
        student = Student(network.init(seed / i / "init"))
        vector = teach(network, student, curriculum, teaching, seed / i).vector
        logits, targets = predict(network, vector, test)
        yield {"accuracy": share_right(logits, targets)} | {name: m(logits, targets) for name, m in metrics.items()}
        report("evaluation", i + 1, students)


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and population standard deviation over students, as the field reports them."""
    return mean(values), pstdev(values)
