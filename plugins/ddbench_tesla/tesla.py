"""The method, from a piece of an expert's trajectory to a step of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from ddbench import Problem, Published
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.method import Segment, Shown, Swept, engine_for, move, targets_of
from ddbench.trajectory.unroll import Curvature, Task, matching, reverse, student_loss


@dataclass(frozen=True)
class Tesla(Swept):
    """Match expert trajectories through T student steps, one step's graph at a time.

    | paper | here |
    | --- | --- |
    | T, beta | ``syn_steps``; the learned student lr, which starts at ``lr_init`` |
    | theta*_t, theta*_{t+M} | ``segment``: an expert after s and after s + ``span`` epochs, s < ``max_start`` |
    | L (eq. 2) | ``matching``: squared distance of theta_T and theta*_{t+M}, over that of theta*_t and theta*_{t+M} |
    | X_i, Y_i | the batch of step i: ``batch_syn`` images of this stage and the frozen ones, and their labels |

    The gradient comes from a sweep back over the student's steps (``reverse`` of ddbench.trajectory.unroll). With g_i
    the gradient of step i and lambda_T = dL/dtheta_T, step i adds -beta d<lambda_{i+1}, g_i>/d(X_i, Y_i), and passes on

    - ``curvature="zero"``: lambda_i = lambda_{i+1}. This is the published gradient (eq. 5-6), one vector
      for all steps;
    - ``curvature="exact"``: lambda_i = lambda_{i+1} - beta H_i lambda_{i+1}, with the Hessian H_i of the
      student's loss. This is the true gradient of the unroll, what MTT's autograd computes, at the same memory.

    The released code halves the image gradient by accident; here it has its right size, so a published lr_img of 1000
    is 500 here (recipes are converted).

    ``labels="teacher"`` is the paper's soft label assignment: the mean prediction of the experts for the
    images that distillation starts from, kept to the end. ``relabel=True`` is what the released code does:
    every iteration labels the current images by the target of its segment (what is stored is again the mean
    prediction); images and labels can then drift together until neither says anything, see docs/tesla.md. The
    official CIFAR commands use ``"hard"``.

    ``engine="auto"`` compiles the student's steps in runs that are long enough to win the time back, by a rule of
    shapes and counts (docs/performance.md). Compiled and eager steps agree up to rounding, not to the bit.
    """

    name = "tesla"
    paper = "Cui et al., ICML 2023"
    paper_url = "https://arxiv.org/abs/2211.10586"
    published = (Published("TESLA"),)
    labels: Annotated[Literal["teacher", "learned", "hard"], "what the images are labelled with"] = "teacher"
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    curvature: Annotated[Curvature, "TESLA's formula, or the true unrolled gradient"] = "zero"

    def step(self, problem: Problem, state: PixelState, k: int) -> tuple[PixelState, dict[str, float | Tensor]]:
        """A student follows a piece of an expert's trajectory; images, labels and beta descend its final loss."""
        segment = Segment.draw(self, problem)
        shown = Shown.draw(self, problem, state)
        labels = targets_of(self, problem, segment, shown)
        task = Task(
            loss=student_loss(problem.network, segment.buffers(problem)),
            terminal=matching(segment.start, segment.target),
            start=segment.start,
            pool=shown.pool(problem, labels),
            lr=state.lr.to(segment.start.dtype),
            plan=shown.plan,
        )
        engine = engine_for(self, problem)
        gradient = reverse(*task, curvature=self.curvature, window=self.window, engine=engine)
        return state, move(self, state, shown, gradient, k) | {"start": float(segment.epoch)}
