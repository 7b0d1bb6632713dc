"""An iteration of trajectory matching, as mtt, ftd and datm share it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ddbench import Problem
from ddbench.trajectory.descent import PixelState
from ddbench.trajectory.method import Method, Segment, Shown, move, report_of, targets_of
from ddbench.trajectory.unroll import Gradient, Task, matching, student_loss


def advance(
    method: Method,
    problem: Problem,
    state: PixelState,
    k: int,
    differentiate: Callable[[Task], Gradient],
    starts: range | None = None,
    threshold: float | None = None,
) -> tuple[PixelState, dict[str, float | Tensor]]:
    """Draw a segment and a student's plan, differentiate, descend (Cazenavette et al., CVPR 2022, algorithm 1).

    ``starts`` are the epochs at which the segment may begin. A loss above ``threshold``, or one that is not a number,
    moves nothing: neither values nor momenta; the metric ``skipped`` tells.
    """
    segment = Segment.draw(method, problem, starts)
    shown = Shown.draw(method, problem, state)
    pool = shown.pool(problem, targets_of(method, problem, segment, shown))
    loss = student_loss(problem.network, segment.buffers(problem))
    end, lr = matching(segment.start, segment.target), state.lr.to(segment.start.dtype)
    gradient = differentiate(Task(loss, end, segment.start, pool, lr, shown.plan))
    if threshold is None:
        return state, move(method, state, shown, gradient, k)
    follows = float(gradient.loss) <= threshold
    numbers = move(method, state, shown, gradient, k) if follows else report_of(method, state, gradient, k)
    return state, numbers | {"skipped": float(not follows)}
