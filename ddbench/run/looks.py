"""How a stage's images come about: a small picture of the set at five points of its iterations, for people.

The picture is of what ``result`` gives at that point, under the address that selection asks under: a resumed run has
the same ones, bit for bit, and no random number is drawn for them.
"""

from __future__ import annotations

from pathlib import Path

from ddbench.base.cache import atomic_write, digest
from ddbench.grade.preview import glimpse
from ddbench.problem.problem import Problem
from ddbench.problem.synthetic import SyntheticSet

POINTS = 5


def points(steps: int) -> frozenset[int]:
    """After how many of so many iterations: none, a quarter, half, three quarters, all; nowhere in a coreset."""
    return frozenset(round(steps * i / (POINTS - 1)) for i in range(POINTS)) if steps else frozenset()


def file(folder: Path, step: int) -> Path:
    """Where the picture of an iteration is, in the folder of its stage."""
    return folder / f"images-{step}.png"


def keep(made: SyntheticSet, problem: Problem, folder: Path, step: int) -> str:
    """Write the picture of a set; returns its sha256."""
    data = glimpse(made, problem.real.preprocessing, problem.classes)
    atomic_write(file(folder, step), data)
    return digest(data)
