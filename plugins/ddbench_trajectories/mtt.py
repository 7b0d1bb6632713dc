"""MTT: trajectory matching by plain autograd through the whole unroll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ddbench import Published
from ddbench.trajectory.method import Method
from ddbench.trajectory.unroll import Gradient, Task, autograd_unroll


@dataclass(frozen=True)
class Mtt(Method):
    """Matching training trajectories (Cazenavette et al., CVPR 2022), as published: autograd, hard labels.

    The same objective as ``tesla`` with ``curvature="exact"``, at a memory that grows with every student
    step: the reference for its tests and for the comparison of memory.
    """

    name = "mtt"
    paper = "Cazenavette et al., CVPR 2022"
    paper_url = "https://arxiv.org/abs/2203.11932"
    published = (Published("MTT"), Published("MTT(no ZCA; DC-Bench avg)", variant=True))
    labels: Annotated[Literal["teacher", "learned", "hard"], "what the images are labelled with"] = "hard"
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"

    def differentiate(self, task: Task) -> Gradient:
        return autograd_unroll(*task)
