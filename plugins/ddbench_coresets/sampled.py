"""Random real images, with hard labels or with those of experts: what every claim is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from ddbench import Examples, Problem, Published
from ddbench_coresets.coreset import Coreset


@dataclass(frozen=True)
class Random(Coreset):
    """Random real images of each class: the baseline of every claim.

    They are drawn from the run's seed alone; in stages, each takes others.
    """

    name = "random"
    published = (
        Published("Random", "hard"),
        Published("Random(DC-era)", "hard"),
        Published("RandomReal hard label", "hard", variant=True),
        Published("RandomReal+SoftLabel(expert)", "soft"),
    )

    def choose(self, problem: Problem) -> Examples:
        return problem.sample()
