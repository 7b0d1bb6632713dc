"""Accuracy while a student learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ddbench import UsageError, predict
from ddbench_metrics.basic import accuracy

if TYPE_CHECKING:
    from ddbench import Examinee

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Curve:
    """Test accuracy after a share of a student's optimiser steps: ``curve.<step>``.

    The learning rate follows the student's own schedule, so a point is no student that was trained for so few steps.
    """

    name = "curve"
    costly = True
    fractions: Annotated[tuple[float, ...], "shares of a student's steps after which it is measured"] = FRACTIONS

    def __post_init__(self) -> None:
        wrong = [f for f in self.fractions if not 0 < f <= 1]
        if wrong or not self.fractions:
            said = f"got {wrong[0]}" if wrong else "got none"
            raise UsageError(f"curve.fractions are shares of the steps above 0 and up to 1, {said}")

    def marks(self, steps: int) -> Iterable[int]:
        return sorted({max(1, round(share * steps)) for share in self.fractions})

    def examine(self, student: Examinee) -> dict[str, float]:
        points = {}
        for step, vector in student.trail:
            points[str(step)] = accuracy(*predict(student.network, vector, student.test))
        return points
