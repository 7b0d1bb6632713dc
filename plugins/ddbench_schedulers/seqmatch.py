"""SeqMatch: sequential subset matching.

Du, Shi & Zhou, "Sequential Subset Matching for Dataset Distillation", NeurIPS 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from ddbench import Curriculum, Problem
from ddbench.problem.stages import Networks, Staged, growing, taught


@dataclass(frozen=True)
class SeqMatch(Staged):
    """Subsets distilled one after another, each for fresh networks that have learned the earlier ones.

    Stage k draws initialisations of its own, which learn S1, then S1 and S2, ..., each with the learning rate of its
    own stage, before they meet real data. The released code keeps the learning rate of the first stage only, so that
    with three stages its networks learn S1 alone; here all earlier stages are taught. Students learn the growing
    union, phase by phase. Published runs have 2 or 3 subsets, of 17, 17 and 16 images per class for 50.
    """

    name = "seqmatch"
    version = "2"  # 1 had ten taught networks in later stages, whatever a matcher drew
    paper = "Du, Shi & Zhou, NeurIPS 2023"
    paper_url = "https://arxiv.org/abs/2311.01570"
    stages: Annotated[int, Ge(1), "subsets, K"] = 2
    networks: Networks = None

    def stage(self, problem: Problem, done: Curriculum) -> Problem:
        return replace(problem, starts=taught(problem.starts, done, chain=False, networks=self.networks))

    def phases(self, n: int) -> tuple[tuple[int, ...], ...]:
        return growing(n)
