"""Restarts without stages: the whole budget at once, for students whose learning rate starts afresh P times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from ddbench import Curriculum, Problem


@dataclass(frozen=True)
class Restarts:
    """One set, learned in ``restarts`` phases of N / P steps each, as students of P stages learn theirs.

    A staged schedule differs from ``single`` in two things: its sets are made one after another, and its students'
    learning rate and momentum start anew with each. This one has the second without the first, so that what stages are
    worth is the difference from it.
    """

    name = "restarts"
    stages = 1
    restarts: Annotated[int, Ge(1), "phases in which students learn the set, P"] = 5

    def next(self, task: Problem, done: Curriculum) -> Problem | None:
        return None if len(done) else task

    def phases(self, n: int) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(n)),) * self.restarts if n else ()
