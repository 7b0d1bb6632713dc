"""The gradient of a loss at the end of a student's training, in memory that does not grow with its steps.

| symbol | here | meaning |
| --- | --- | --- |
| theta_t | ``path[t]`` | the student's parameters before step t (one flat vector) |
| g_t | ``g`` | gradient of the student's loss on batch t at theta_t |
| beta | ``lr`` | the student's learning rate |
| I_t, A_t | ``plan.batches[t]``, ``plan.draws[t]`` | rows of the pool, and the augmentation, of step t |
| L | ``terminal(theta_T)`` | the loss at the end, e.g. :func:`matching` |
| lambda_t | ``adjoint`` | dL/dtheta_t |

Forward, theta_{t+1} = U(theta_t, s_t, g_t, beta) for an optimiser U with state s_t; only parameter vectors
are kept. Backward, one step's graph at a time: the cotangents of (theta_{t+1}, s_{t+1}) pass through U,
which gives those of (theta_t, s_t, g_t, beta); with the cotangent v of g_t (v = -beta lambda_{t+1} for
plain SGD), d<v, g_t>/d(images, labels) are this step's contributions, and d<v, g_t>/dtheta_t = H_t v is
the Hessian product that

- ``curvature="exact"`` adds to the adjoint: the true unrolled gradient, what MTT's autograd computes;
- ``curvature="zero"`` drops: TESLA's published formula (Cui et al., ICML 2023, eq. 5-6), which takes
  every theta_t as independent of earlier images. The two agree for one step.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad

from ddbench.base.ranks import current
from ddbench.data.augment import DSA, NO_DRAW
from ddbench.data.dataset import Examples
from ddbench.problem.synthetic import Pool
from ddbench.train.network import Network
from ddbench.train.optimisers import SGD, Optimiser, State
from ddbench.train.precision import arithmetic
from ddbench.trajectory.derivatives import Passes, differentiable
from ddbench.trajectory.divided import divided
from ddbench.trajectory.engine import EAGER, Engine
from ddbench.trajectory.step import Augment, Loss, Step, StudentLoss, first_order, linear

Curvature = Literal["exact", "zero"]
Terminal = Callable[[Tensor], Tensor]  # parameters -> scalar
Choose = Callable[[Sequence[Tensor]], int]  # theta_1 .. theta_T -> t, the step at which the student is taken


@dataclass(frozen=True, eq=False)
class Plan:
    """What the student does: for each step, rows of the pool ``(b,)`` and an augmentation to replay."""

    batches: tuple[Tensor, ...]
    draws: tuple[Augment, ...]

    @classmethod
    def draw(cls, size: int, steps: int, batch: int | None, augment: DSA) -> Plan:
        """Random permutations of ``size`` rows cut into chunks of ``batch`` (all rows when None).

        As in MTT, every pass over the rows is a new permutation, and a pass that ``batch`` does not
        divide has one short chunk, which comes first.
        """
        batch = min(batch or size, size)
        chunks: list[Tensor] = []
        while len(chunks) < steps:
            chunks.extend(reversed(torch.randperm(size).split(batch)))
        batches = tuple(chunks[:steps])
        return cls(batches, tuple(augment.draw(len(rows)) for rows in batches))

    def compact(self, frozen: int = 0) -> tuple[Tensor, Plan]:
        """Which new rows the plan uses ``(r,)``, ascending and counted from 0, and the plan for a pool of just those.

        Rows below ``frozen`` stay as they are. With a large set, the gradients of one unroll are those few rows.
        """
        used = torch.cat(self.batches)
        rows = used[used >= frozen].unique()  # ascending

        def renumbered(batch: Tensor) -> Tensor:
            return torch.where(batch < frozen, batch, frozen + torch.searchsorted(rows, batch))

        return rows - frozen, replace(self, batches=tuple(map(renumbered, self.batches)))

    @classmethod
    def plain(cls, batches: list[Tensor]) -> Plan:
        """The given rows without augmentation."""
        return cls(tuple(batches), (NO_DRAW,) * len(batches))


class Task(NamedTuple):
    """What a gradient at the end of an unroll depends on, in the order in which :func:`reverse` takes it.

    ``start`` is theta_0 ``(p,)``, ``lr`` a 0-dim tensor.
    """

    loss: Loss
    terminal: Terminal
    start: Tensor
    pool: Pool
    lr: Tensor
    plan: Plan


@dataclass(frozen=True, eq=False)
class Gradient:
    """The end loss and its gradients: ``images`` and ``labels`` have the shapes of the pool's new rows.

    ``labels`` is with respect to the targets (probabilities); pull it back through a softmax for
    logits. ``end`` is theta_T.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    end: Tensor


Differentiate = Callable[[Task], Gradient]


def by_task(differentiate: Callable[..., Gradient]) -> Differentiate:
    """``differentiate`` as it is called now; one that takes the parts of a task one by one, as before, is adapted."""
    if len(inspect.signature(differentiate).parameters) < len(Task._fields):
        return differentiate
    warnings.warn(
        f"{getattr(differentiate, '__qualname__', differentiate)} takes the six parts of a task; let it take one "
        "ddbench.trajectory.unroll.Task: the old form goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    return lambda task: differentiate(*task)


def student_loss(network: Network, buffers: Tensor | None = None) -> StudentLoss:
    """The loss of a student; the one kind of loss that an engine can compile."""
    return StudentLoss(network, torch.empty(0, device=network.device) if buffers is None else buffers)


def matching(start: Tensor, target: Tensor) -> Terminal:
    """MTT's loss: |theta_T - target|^2 / |start - target|^2 (Cazenavette et al., CVPR 2022, eq. 2)."""
    scale = (start - target).square().sum()

    def terminal(theta: Tensor) -> Tensor:
        return (theta - target).square().sum() / scale

    return terminal


def reverse(
    loss: Loss,
    terminal: Terminal,
    start: Tensor,
    pool: Pool,
    lr: Tensor,
    plan: Plan,
    *,
    curvature: Curvature = "exact",
    optimiser: Optimiser | None = None,
    window: int | None = None,
    engine: Engine = EAGER,
    choose: Choose | None = None,
) -> Gradient:
    """Gradients of ``terminal(theta_T)`` by a reverse sweep over stored parameter vectors.

    ``start`` is theta_0 ``(p,)``, ``lr`` a 0-dim tensor. ``window`` stops the sweep after that many
    steps from the end (truncated backpropagation). Memory: one step's graph, and the vectors of the steps swept.
    ``choose`` takes the end at another step than the last: later ones are played, but nothing depends on them.
    A loss that is no :class:`StudentLoss` is differentiated eagerly by every ``engine``.
    """
    rule, steps = optimiser or SGD(), len(plan.batches)
    first = 0 if window is None or choose is not None else max(0, steps - window)
    passes: dict[int, Passes] = {}
    if isinstance(loss, StudentLoss):
        passes = _passes(engine, loss, start, pool, plan, curvature)
    with arithmetic(start.device, "float32"):  # steps of a lower precision say so themselves
        path, states, kept = _forward(loss, start, pool, lr.detach(), plan, rule, first, passes)
        if choose is not None:
            steps, first = _ended(choose(path[1:]), window, path, states, kept)
        end = path[-1].requires_grad_()
        value = terminal(end)
        cotangents = (grad(value, end)[0], tuple(torch.zeros_like(s) for s in states[-1]))
        images, labels, lr_gradient = map(torch.zeros_like, (pool.new.images, pool.new.labels, lr))
        for t in range(steps - 1, first - 1, -1):
            path.pop()  # theta_{t+1} is not needed again
            states.pop()
            rows = plan.batches[t]
            step = Step(loss, rule, path[-1].detach(), states[-1], lr.detach(), pool[rows], plan.draws[t], kept.pop())
            swept = step.back(*cotangents, curvature == "exact" and t > first, passes.get(len(rows)))
            cotangents = (swept.adjoint, swept.state_adjoint)
            lr_gradient += swept.lr
            pool.scatter(images, rows, swept.images)
            pool.scatter(labels, rows, swept.labels)
        return Gradient(value.detach(), images, labels, lr_gradient, end.detach())


def _ended(steps: int, window: int | None, path: list, states: list, kept: list) -> tuple[int, int]:
    """Leave out what was played after ``steps``: vectors, states, what each step keeps; where the sweep ends."""
    del path[steps + 1 :], states[steps + 1 :], kept[steps:]
    return steps, 0 if window is None else max(0, steps - window)


def autograd_unroll(
    loss: Loss,
    terminal: Terminal,
    start: Tensor,
    pool: Pool,
    lr: Tensor,
    plan: Plan,
    *,
    curvature: Curvature = "exact",
    optimiser: Optimiser | None = None,
) -> Gradient:
    """The same gradients by plain autograd through the whole unroll: memory grows with every step.

    The reference for tests, and what MTT's published code does. ``curvature="zero"`` detaches theta_t
    where g_t is computed.
    """
    rule = optimiser or SGD()
    images = pool.new.images.detach().requires_grad_()
    labels = pool.new.labels.detach().requires_grad_()
    rate = lr.detach().requires_grad_()
    leaves = Pool(Examples(images, labels), pool.frozen)
    passes: dict[int, Passes] = {}
    if isinstance(loss, StudentLoss) and current() is not None and not start.is_meta:
        passes = _passes(EAGER, loss, start, pool, plan, curvature)
    with arithmetic(start.device, "float32"):
        theta = start.detach().requires_grad_()
        state = rule.init(theta)
        for rows, draw in zip(plan.batches, plan.draws, strict=True):
            batch = leaves[rows]
            at = theta if curvature == "exact" else theta.detach().requires_grad_()
            augmented = draw(batch.images)
            if isinstance(loss, StudentLoss) and passes:
                g = differentiable(passes[len(rows)], at, loss.buffers, augmented, batch.labels)
            else:
                g = grad(loss(at, augmented, batch.labels), at, create_graph=True)[0]
            theta, state = rule.update(theta, state, g, rate)
        value = terminal(theta)
        gradients = grad(value, (images, labels, rate))
        return Gradient(value.detach(), gradients[0], gradients[1], gradients[2], theta.detach())


def _passes(
    engine: Engine, loss: StudentLoss, start: Tensor, pool: Pool, plan: Plan, curvature: Curvature
) -> dict[int, Passes]:
    """Passes by the size of a batch: those of ``engine``, or of all ranks if there are several."""
    sizes, classes, exact = [len(rows) for rows in plan.batches], pool.new.labels.shape[1], curvature == "exact"
    ranks = current()
    if ranks is None or start.is_meta:
        return engine.passes(loss.network, loss.buffers, start, sizes, classes, exact)
    counts = {size: engine.count(sizes, size) for size in sizes}
    return {size: divided(ranks, engine, loss.network, counts[size], classes, exact) for size in counts}


def play(loss: Loss, start: Tensor, pool: Pool, lr: Tensor, plan: Plan, optimiser: Optimiser | None = None) -> Tensor:
    """theta_T alone, forwards: what :func:`reverse` calls ``end``, in the memory of one step."""
    with arithmetic(start.device, "float32"):
        steps = len(plan.batches)
        path, _, _ = _forward(loss, start, pool, lr.detach(), plan, optimiser or SGD(), steps)
        return path[-1]


def _forward(
    loss: Loss,
    start: Tensor,
    pool: Pool,
    lr: Tensor,
    plan: Plan,
    rule: Optimiser,
    first: int,
    passes: dict[int, Passes] | None = None,
) -> tuple[list[Tensor], list[State], list[Tensor | None]]:
    """theta_first to theta_T, the optimiser's states beside them, and the g_t that compiled steps need again."""
    theta = start.detach()
    path, states, kept = [theta], [rule.init(theta)], []
    for t, (rows, draw) in enumerate(zip(plan.batches, plan.draws, strict=True)):
        batch = pool[rows]
        compiled = (passes or {}).get(len(rows))
        with torch.no_grad():
            augmented = draw(batch.images)
        g = first_order(loss, theta, augmented, batch.labels, compiled)
        with torch.no_grad():
            theta, state = rule.update(theta, states[-1], g, lr)
        if t < first:  # theta_t lies before the window
            path.clear()
            states.clear()
            kept.clear()
        path.append(theta)
        states.append(state)
        kept.append(g.clone() if compiled and not linear(rule) else None)
    return path, states, kept[len(kept) - len(path) + 1 :]
