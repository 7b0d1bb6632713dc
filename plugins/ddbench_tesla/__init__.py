"""TESLA: trajectory matching with memory that does not grow with the student's steps.

Cui, Wang, Si & Hsieh, "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from ddbench import Needs, Pool, Problem, SyntheticSet, hookimpl
from ddbench.trajectory import PixelState, advance, begin, finish, needs
from ddbench.unroll import Gradient, Loss, Plan, Terminal, reverse


@dataclass(frozen=True)
class Tesla:
    """Match expert trajectories through T student steps, one step's graph at a time.

    | paper | here |
    | --- | --- |
    | T, beta | ``syn_steps``; the learned student lr, which starts at ``lr_init`` |
    | theta*_t, theta*_{t+M} | an expert after s and after s + ``span`` epochs, s < ``max_start`` |
    | L (eq. 2) | squared distance of theta_T and theta*_{t+M}, over that of theta*_t and theta*_{t+M} |
    | X_i | the batch of step i: ``batch_syn`` images of this stage and the frozen ones |

    ``curvature="zero"`` is the published gradient (eq. 5-6), the true one with all Hessians left out;
    ``"exact"`` is the true gradient at the same memory. The released code halves the image gradient by
    accident; here it has its right size, so a published lr_img of 1000 is 500 here (recipes are converted).

    ``labels="teacher"`` is the paper's soft label assignment: the mean prediction of the experts for the
    images that distillation starts from, kept to the end. ``relabel=True`` is what the released code does:
    every iteration labels the current images by the target of its segment (what is stored is again the mean
    prediction); images and labels can then drift together until neither says anything, see docs/tesla.md. The
    official CIFAR commands use ``"hard"``.
    """

    name = "tesla"
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
    labels: Annotated[Literal["teacher", "learned", "hard"], "what the images are labelled with"] = "teacher"
    teacher_epochs: Annotated[int | None, Ge(1), "epochs of the experts that label; none: where segments end"] = None
    relabel: Annotated[bool, "teacher labels anew in every iteration, as TESLA's code does"] = False
    clip: Annotated[float | None, Gt(0), "bound of the image gradient, times its running mean"] = 2.0
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    augment: Annotated[bool, "DSA in the student's steps"] = True
    curvature: Annotated[Literal["zero", "exact"], "TESLA's formula, or the true unrolled gradient"] = "zero"
    window: Annotated[int | None, Ge(1), "differentiate only the last steps of the student; none for all"] = None

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
        return reverse(loss, terminal, start, pool, lr, plan, curvature=self.curvature, window=self.window)

    def result(self, problem: Problem, state: PixelState) -> SyntheticSet:
        return finish(self, problem, state)


@hookimpl
def register_matchers(register) -> None:
    register(Tesla, recipes=Path(__file__).with_name("recipes.toml"))
