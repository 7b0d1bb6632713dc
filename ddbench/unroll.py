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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import grad

from ddbench.augment import DSA, NO_DRAW, Draw
from ddbench.data import Examples
from ddbench.networks import Network
from ddbench.optimisers import SGD, Optimiser, State
from ddbench.sets import Pool
from ddbench.training import soft_cross_entropy

Curvature = Literal["exact", "zero"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (parameters, images, targets) -> scalar
Terminal = Callable[[Tensor], Tensor]  # parameters -> scalar


@dataclass(frozen=True, eq=False)
class Plan:
    """What the student does: for each step, rows of the pool ``(b,)`` and an augmentation to replay."""

    batches: tuple[Tensor, ...]
    draws: tuple[Draw, ...]

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
        renumbered = [torch.where(b < frozen, b, frozen + torch.searchsorted(rows, b)) for b in self.batches]
        return rows - frozen, Plan(tuple(renumbered), self.draws)

    @classmethod
    def plain(cls, batches: list[Tensor]) -> Plan:
        """The given rows without augmentation."""
        return cls(tuple(batches), (NO_DRAW,) * len(batches))


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


def student_loss(network: Network, buffers: Tensor | None = None) -> Loss:
    """The soft cross-entropy of ``network`` as a function of its parameters (training mode).

    ``buffers`` are the batch-norm statistics that ride along, constant; none when the network has none.
    """

    def loss(parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        vector = parameters if buffers is None or not len(buffers) else torch.cat([parameters, buffers])
        return soft_cross_entropy(network.apply(vector, images), labels)

    return loss


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
) -> Gradient:
    """Gradients of ``terminal(theta_T)`` by a reverse sweep over stored parameter vectors.

    ``start`` is theta_0 ``(p,)``, ``lr`` a 0-dim tensor. ``window`` stops the sweep after that many
    steps from the end (truncated backpropagation). Memory: one step's graph, and the vectors of the steps swept.
    """
    rule, steps = optimiser or SGD(), len(plan.batches)
    first = 0 if window is None else max(0, steps - window)
    path, states = _forward(loss, start, pool, lr.detach(), plan, rule, first)
    end = path[-1].requires_grad_()
    value = terminal(end)
    adjoint = grad(value, end)[0]
    state_adjoint = tuple(torch.zeros_like(s) for s in states[-1])
    images, labels = torch.zeros_like(pool.new.images), torch.zeros_like(pool.new.labels)
    lr_gradient = torch.zeros_like(lr)
    for t in range(steps - 1, first - 1, -1):
        path.pop()  # theta_{t+1} is not needed again
        states.pop()
        rows, batch = plan.batches[t], pool[plan.batches[t]]
        need_curvature = curvature == "exact" and t > first
        theta = path[-1].requires_grad_()
        second = _SecondOrder(loss, theta, batch, plan.draws[t])
        adjoint, state_adjoint, v, rate = _through_update(
            rule, theta.detach(), states[-1], second.g.detach(), lr.detach(), adjoint, state_adjoint
        )
        lr_gradient += rate
        d_images, d_labels, curved = second.pull(v, need_curvature)
        pool.scatter(images, rows, d_images)
        pool.scatter(labels, rows, d_labels)
        if curved is not None:
            adjoint = adjoint + curved
    return Gradient(value.detach(), images, labels, lr_gradient, end.detach())


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
    theta = start.detach().requires_grad_()
    state = rule.init(theta)
    for rows, draw in zip(plan.batches, plan.draws, strict=True):
        batch = leaves[rows]
        at = theta if curvature == "exact" else theta.detach().requires_grad_()
        g = grad(loss(at, draw(batch.images), batch.labels), at, create_graph=True)[0]
        theta, state = rule.update(theta, state, g, rate)
    value = terminal(theta)
    gradients = grad(value, (images, labels, rate))
    return Gradient(value.detach(), gradients[0], gradients[1], gradients[2], theta.detach())


def _forward(
    loss: Loss, start: Tensor, pool: Pool, lr: Tensor, plan: Plan, rule: Optimiser, first: int
) -> tuple[list[Tensor], list[State]]:
    """theta_first to theta_T, and the optimiser's states beside them."""
    theta = start.detach()
    path, states = [theta], [rule.init(theta)]
    for t, (rows, draw) in enumerate(zip(plan.batches, plan.draws, strict=True)):
        batch = pool[rows]
        leaf = theta.detach().requires_grad_()
        g = grad(loss(leaf, draw(batch.images), batch.labels), leaf)[0]
        with torch.no_grad():
            theta, state = rule.update(theta, states[-1], g, lr)
        if t < first:  # theta_t lies before the window
            path.clear()
            states.clear()
        path.append(theta)
        states.append(state)
    return path, states


class _SecondOrder:
    """One step's gradient with its graph, to be pulled back along a cotangent once that is known."""

    def __init__(self, loss: Loss, theta: Tensor, batch: Examples, draw: Draw) -> None:
        self.theta = theta
        self.images = batch.images.detach().requires_grad_()
        self.labels = batch.labels.detach().requires_grad_()
        self.augmented = draw(self.images)
        # The augmented batch is the leaf of the second-order graph: A_t is then passed through once.
        self.leaf = self.augmented.detach().requires_grad_()
        self.g = grad(loss(theta, self.leaf, self.labels), theta, create_graph=True)[0]

    def pull(self, v: Tensor, need_curvature: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """d<v, g>/d(images, labels, theta); the last only when asked for."""
        inputs = [self.leaf, self.labels] + ([self.theta] if need_curvature else [])
        d_leaf, d_labels, *curved = grad(self.g, inputs, v, materialize_grads=True)
        d_images = d_leaf
        if self.augmented.requires_grad and self.augmented is not self.images:
            d_images = grad(self.augmented, self.images, d_leaf)[0]
        return d_images, d_labels, curved[0] if curved else None


def _through_update(
    rule: Optimiser,
    theta: Tensor,
    state: State,
    g: Tensor,
    lr: Tensor,
    adjoint: Tensor,
    state_adjoint: State,
) -> tuple[Tensor, State, Tensor, Tensor]:
    """Cotangents of (theta', state') through one update: those of (theta, state, g, lr)."""
    inputs = [t.detach().requires_grad_() for t in (theta, g, lr, *state)]
    after, after_state = rule.update(inputs[0], tuple(inputs[3:]), inputs[1], inputs[2])
    outputs, cotangents = [after, *after_state], [adjoint, *state_adjoint]
    d_theta, d_g, d_lr, *d_state = grad(outputs, inputs, cotangents, materialize_grads=True)
    return d_theta, tuple(d_state), d_g, d_lr
