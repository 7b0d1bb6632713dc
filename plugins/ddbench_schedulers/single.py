"""One stage: the whole budget at once."""

from __future__ import annotations

from dataclasses import dataclass

from ddbench import Curriculum, Problem


@dataclass(frozen=True)
class Single:
    """The task itself, as one problem."""

    name = "single"
    published = "none"
    stages = 1

    def next(self, task: Problem, done: Curriculum) -> Problem | None:
        return None if len(done) else task

    def phases(self, n: int) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(n)),) if n else ()
