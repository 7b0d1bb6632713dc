"""MTT: trajectory matching by plain autograd through the whole unroll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from ddbench import Needs, Pool, Problem, SyntheticSet
from ddbench.trajectory import PixelState, advance, begin, finish, needs
from ddbench.unroll import Gradient, Loss, Plan, Terminal, autograd_unroll


@dataclass(frozen=True)
class Mtt:
    """Matching training trajectories (Cazenavette et al., CVPR 2022), as published: autograd, hard labels.

    The same objective as ``tesla`` with ``curvature="exact"``, at a memory that grows with every student
    step: the reference for its tests and for the comparison of memory.
    """

    name = "mtt"
    steps: Annotated[int, Ge(1), "iterations per stage"] = 500
    syn_steps: Annotated[int, Ge(1), "student steps per iteration, T"] = 10
    span: Annotated[int, Ge(1), "expert epochs between start and target, M"] = 2
    max_start: Annotated[int, Ge(1), "start epochs are drawn from 0..max_start-1"] = 10
    experts: Annotated[int, Ge(1), "expert trajectories"] = 10
    batch_syn: Annotated[int | None, Ge(1), "synthetic images per student step; none for all"] = None
    lr_img: Annotated[float, Gt(0), "outer learning rate of the images"] = 100.0
    lr_lr: Annotated[float, Ge(0), "outer learning rate of the student lr"] = 1e-5
    lr_label: Annotated[float, Ge(0), "outer learning rate of label logits (labels=learned)"] = 2.0
    lr_init: Annotated[float, Gt(0), "initial student lr, beta_0"] = 0.03
    momentum: Annotated[float, Ge(0), "outer momentum of images and student lr"] = 0.5
    labels: Annotated[Literal["teacher", "learned", "hard"], "what the images are labelled with"] = "hard"
    teacher_epochs: Annotated[int | None, Ge(1), "epochs of the experts that label; none: where segments end"] = None
    relabel: Annotated[bool, "teacher labels anew in every iteration, as TESLA's code does"] = False
    clip: Annotated[float | None, Gt(0), "bound of the image gradient, times its running mean"] = 2.0
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    augment: Annotated[bool, "DSA in the student's steps"] = True

    def needs(self, problem: Problem) -> Needs:
        return needs(self)

    def init(self, problem: Problem) -> PixelState:
        return begin(self, problem)

    def step(self, problem: Problem, state: PixelState, k: int) -> tuple[PixelState, dict[str, float | Tensor]]:
        return advance(self, problem, state, k, self.differentiate)

    def differentiate(
        self, loss: Loss, terminal: Terminal, start: Tensor, pool: Pool, lr: Tensor, plan: Plan
    ) -> Gradient:
        """The gradients of an unroll as this method takes them; what ``ddbench check-grad`` examines."""
        return autograd_unroll(loss, terminal, start, pool, lr, plan)

    def result(self, problem: Problem, state: PixelState) -> SyntheticSet:
        return finish(self, problem, state)
