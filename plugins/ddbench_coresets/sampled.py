"""Random real images, with hard labels or with those of experts: what every claim is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from ddbench import Examples, Problem
from ddbench_coresets.coreset import Coreset


@dataclass(frozen=True)
class Random(Coreset):
    """Random real images of each class: the baseline of every claim.

    They are drawn from the run's seed alone; in stages, each takes others.
    """

    name = "random"

    def choose(self, problem: Problem) -> Examples:
        return problem.sample()
