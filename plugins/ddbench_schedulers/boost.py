"""Boosting: blocks distilled one after another, for students that learn all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from ddbench import Curriculum, Problem
from ddbench.problem.stages import Staged


@dataclass(frozen=True)
class Boost(Staged):
    """Blocks that are frozen one after another; students learn their union in one phase, of all N steps.

    Feng, Vedantam & Kempe, "Embarrassingly Simple Dataset Distillation", ICLR 2024 (section on boosting), make
    50 images per class of blocks in this way, so that every prefix is a set of its own. Start networks stay fresh: what
    the earlier blocks do is to stand beside the new one in every student's batches. A block that is done never
    moves (the paper's "weakly boosted" variant lets it move slowly: not offered).
    """

    name = "boost"
    paper = "Feng, Vedantam & Kempe, ICLR 2024"
    paper_url = "https://arxiv.org/abs/2311.07025"
    stages: Annotated[int, Ge(1), "blocks"] = 5

    def stage(self, problem: Problem, done: Curriculum) -> Problem:
        return problem

    def phases(self, n: int) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(n)),) if n else ()
