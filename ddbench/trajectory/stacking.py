"""Several unrolls of students of one network as one: their parameters side by side, their batches end to end.

Shapes: s students, p parameters, b images in a batch of one student. The one unroll has parameters ``(s, p)`` and
batches of s b images; its loss at the end is the sum over students, and its gradients, sums over students, are
those that :func:`~ddbench.trajectory.unroll.reverse` finds for each of them, up to rounding. It is meant for GPUs,
which small batches leave idle, and has been timed on none. Activations are s times those of one. Steps are eager, in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ddbench.problem.synthetic import Pool
from ddbench.train.fit import soft_cross_entropy
from ddbench.train.network import Network
from ddbench.trajectory.step import Augment, Loss, StudentLoss
from ddbench.trajectory.unroll import Plan, Terminal


class Task(NamedTuple):
    """What a gradient at the end of an unroll depends on: the arguments of a matcher's ``differentiate``."""

    loss: Loss
    terminal: Terminal
    start: Tensor
    pool: Pool
    lr: Tensor
    plan: Plan


@dataclass(frozen=True, eq=False)
class StackedLoss:
    """The sum of students' losses, each on its own batch, as a function of their parameters ``(s, p)``.

    ``buffers`` ``(s, n)`` are their batch-norm statistics, with n = 0 for networks without.
    """

    network: Network
    buffers: Tensor

    def __call__(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        def one(theta: Tensor, held: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return soft_cross_entropy(self.network.apply(torch.cat([theta, held]), x), y)

        s = len(parameters)
        batches = images.view(s, -1, *images.shape[1:]), labels.view(s, -1, labels.shape[1])
        return vmap(one)(parameters, self.buffers, *batches).sum()


@dataclass(frozen=True, eq=False)
class Apart:
    """Augmentations of the equal parts of a batch."""

    parts: tuple[Augment, ...]

    def __call__(self, images: Tensor) -> Tensor:
        pieces = images.chunk(len(self.parts))
        return torch.cat([augment(piece) for augment, piece in zip(self.parts, pieces, strict=True)])


def stacked(tasks: Sequence[Task]) -> Task:
    """One task for several of the same pool, student lr, number of steps and sizes of batches."""
    losses = [task.loss for task in tasks]
    assert all(isinstance(loss, StudentLoss) for loss in losses)
    networks = [loss.network for loss in losses if isinstance(loss, StudentLoss)]
    buffers = torch.stack([loss.buffers for loss in losses if isinstance(loss, StudentLoss)])
    plans = [task.plan for task in tasks]
    batches = [torch.cat(rows) for rows in zip(*(plan.batches for plan in plans), strict=True)]
    draws = [Apart(parts) for parts in zip(*(plan.draws for plan in plans), strict=True)]
    terminals = [task.terminal for task in tasks]

    def terminal(ends: Tensor) -> Tensor:
        return torch.stack([end(theta) for end, theta in zip(terminals, ends, strict=True)]).sum()

    start = torch.stack([task.start for task in tasks])
    plan = Plan(tuple(batches), tuple(draws))
    return Task(StackedLoss(networks[0], buffers), terminal, start, tasks[0].pool, tasks[0].lr, plan)
