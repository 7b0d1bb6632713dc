"""ATT: trajectory matching in which the student stops where it is nearest to the target.

Liu, Gu, Cao, Trinitis & Schulz, "Dataset Distillation by Automatic Training Trajectories", ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ddbench import Problem, Published, SyntheticSet
from ddbench.trajectory.method import Segment, Shown, Swept, begin, engine_for, finish, move, targets_of
from ddbench.trajectory.unroll import Gradient, Task, matching, reverse, student_loss
from ddbench_trajectories.ftd import AveragedState, averaged


@dataclass(frozen=True)
class Att(Swept):
    """Automatic training trajectories: MTT's objective at the student step that comes nearest to the target.

        t* = argmin_{1 <= t <= N} |theta_t - theta*_{s+M}|_1
        L = |theta_{t*} - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2

    | paper | here |
    | --- | --- |
    | N_S, the most student steps | ``syn_steps`` |
    | N_T, expert epochs | ``span`` |
    | minimum distance strategy, by the L1 norm | t*, chosen anew in every iteration; metric ``matched`` |
    | eta, alpha | the student lr from ``lr_init`` |
    | EMA of the synthetic images | ``decay``, as in ``ftd`` |

    A student of fixed length N that overshoots is matched where it has long gone by; this one is matched where it
    comes nearest, so N is an upper bound. t* is taken as a constant: the gradient is that of the unroll of t* steps, by
    default the exact one at constant memory. Steps after t* are played and count for nothing. ``ddbench check-grad``
    examines the gradient of all N steps.

    The result is the moving average of the images, ``decay=0`` the last iterate. The released code grades the average
    with networks that have learned the last iterate before, as FTD's does; here, students of the average start afresh.
    """

    name = "att"
    paper = "Liu et al., ECCV 2024"
    paper_url = "https://arxiv.org/abs/2407.14245"
    published = (Published("ATT"),)
    labels: Annotated[Literal["hard", "teacher"], "what the images are labelled with"] = "hard"
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    decay: Annotated[float, Ge(0), Lt(1), "of the moving average of the images; 0 for the last iterate"] = 0.95

    def init(self, problem: Problem) -> AveragedState:
        pixels = begin(self, problem, problem.sample())
        return AveragedState(pixels, pixels.images.clone())

    def step(self, problem: Problem, state: AveragedState, k: int) -> tuple[AveragedState, dict[str, float | Tensor]]:
        segment, shown = Segment.draw(self, problem), Shown.draw(self, problem, state.pixels)
        pool = shown.pool(problem, targets_of(self, problem, segment, shown))
        loss, lr = student_loss(problem.network, segment.buffers(problem)), state.pixels.lr.to(segment.start.dtype)
        end = matching(segment.start, segment.target)
        task = Task(loss, end, segment.start, pool, lr, shown.plan)
        gradient, stop = self.followed(task, segment.target, problem)
        numbers = move(self, state.pixels, shown, gradient, k)
        numbers |= {"start": float(segment.epoch), "matched": float(stop)}
        return averaged(self, state, state.pixels, self.decay), numbers

    def result(self, problem: Problem, state: AveragedState) -> SyntheticSet:
        return finish(self, problem, replace(state.pixels, images=state.average))

    def followed(self, task: Task, target: Tensor, problem: Problem | None = None) -> tuple[Gradient, int]:
        """The gradients of a task whose student stops where it is nearest to ``target`` ``(p,)``, and t* itself."""
        stops: list[int] = []

        def choose(path: Sequence[Tensor]) -> int:
            stops.append(nearest(path, target))
            return stops[0]

        engine = engine_for(self, problem)
        return reverse(*task, curvature=self.curvature, window=self.window, engine=engine, choose=choose), stops[0]


def nearest(path: Sequence[Tensor], target: Tensor) -> int:
    """The t of the theta_t, of ``path`` = theta_1, theta_2, ..., with the least L1 distance; the last one of equals."""
    distances = torch.stack([(theta - target).abs().sum() for theta in path]).nan_to_num(nan=torch.inf)
    return len(path) - int(distances.flip(0).argmin())
