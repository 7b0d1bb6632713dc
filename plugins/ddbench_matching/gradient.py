"""DC and DSA: the gradients of real and synthetic images, matched while a network learns the synthetic set.

Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (dc); Zhao & Bilen, "Dataset
Condensation with Differentiable Siamese Augmentation", ICML 2021 (dsa). An iteration k of both:

    theta_0 a new random network
    for t = 0 .. outer-1:
        S <- S - lr_img sum_c dD(g(T_c, theta_t), g(S_c, theta_t)) / dS      (with momentum)
        theta_{t+1} = theta_t after ``inner`` epochs of SGD on S              (not after the last step)

| papers | here |
| --- | --- |
| g(B, theta) | gradient by theta of the mean cross entropy of a batch B of one class |
| D | ``metric``; both papers use ``ours`` |
| T_c, S_c | ``batch_real`` real images of class c, and all its decoded synthetic ones, frozen ones included |
| eta_S, eta_theta | ``lr_img``, ``lr_net`` |
| K, T, varsigma_theta | ``steps``, ``outer``, ``inner`` (in epochs) |

DSA augments T_c and S_c by one draw for all their images, and the batches that theta learns by draws for each image;
DC augments nothing. Real gradients are constants. The classes' losses are summed, and images take one step for all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.autograd import grad

from ddbench import DSA, Problem, Published, Recipe, Student, SyntheticSet, fit
from ddbench_matching.clusters import Interval, Rows, Sampling, chosen_rows
from ddbench_matching.common import (
    Metric,
    Momentum,
    PixInit,
    State,
    begin,
    class_gradient,
    descend,
    distance,
    drawn_seed,
    finish,
    not_falling,
    per_class,
    real_images,
    rows_of,
    shown_images,
    siamese,
)

BATCH_NORM = 16  # real images per class that batch norm's statistics are taken from
# Images per class: (outer, inner), as published for these five; ipc 1 needs no training in between.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


@dataclass(frozen=True)
class Dc:
    """Dataset condensation: images whose gradients are those of real ones, along a network's training on them.

    ``loops`` gives the published ``outer`` and ``inner`` for the images per class, and values in between. D sums over
    output channels, so ``lr_img`` depends on the width of the network: the published 0.1 is for 128 channels.
    Networks with batch norm are matched with its statistics frozen to those of 16 real images per class.
    """

    name = "dc"
    paper = "Zhao, Mopuri & Bilen, ICLR 2021"
    paper_url = "https://arxiv.org/abs/2006.05929"
    published = (Published("DC"),)
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage, each with a new network"] = 30
    outer: Annotated[int | None, Ge(1), "matching steps per iteration, by default according to ipc"] = None
    inner: Annotated[int | None, Ge(1), "epochs between matching steps, by default according to ipc"] = None
    metric: Annotated[Metric, "distance of gradients"] = "ours"
    batch_real: Annotated[int, Ge(1), "real images per class and step, as far as there are so many"] = 256
    lr_img: Annotated[float, Gt(0), "learning rate of the images"] = 0.1
    momentum: Momentum = 0.5
    batch_net: Annotated[int, Ge(1), "batch size of the network's training"] = 256
    lr_net: Annotated[float, Gt(0), "learning rate of the network"] = 0.01
    pix_init: PixInit = "noise"
    sampling: Sampling = "random"
    cluster_every: Interval = 10

    def init(self, problem: Problem) -> State:
        return begin(problem, self.pix_init, self.momentum)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        return condense(self, problem, state, DSA())

    def passes(self, problem: Problem) -> float:
        """Per matching step the gradients of both, one differentiated again; between them the network's training."""
        default, count = loops(per_class(problem)), problem.classes * problem.ipc * problem.decoder.copies
        outer, inner = self.outer or default[0], self.inner or default[1]
        return outer * (problem.classes * self.batch_real + 2 * count) + (outer - 1) * inner * count

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        return not_falling(rows)

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return finish(state)


@dataclass(frozen=True)
class Dsa(Dc):
    """Dataset condensation with differentiable siamese augmentation: ``dc`` on augmented images, from real ones.

    ``augment=false`` and ``pix_init=noise`` make it ``dc``, where the options are explained.
    """

    name = "dsa"
    paper = "Zhao & Bilen, ICML 2021"
    paper_url = "https://arxiv.org/abs/2102.08259"
    published = (Published("DSA"),)
    pix_init: PixInit = "real"
    augment: Annotated[bool, "DSA: siamese for matching, for each image in the network's training"] = True

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        return condense(self, problem, state, problem.dsa if self.augment else DSA())


def condense(method: Dc, problem: Problem, state: State, dsa: DSA) -> tuple[State, dict[str, float | Tensor]]:
    """One iteration. Its loss is the mean over matching steps and classes, as the released code reports it."""
    default = loops(per_class(problem))
    outer, inner = method.outer or default[0], method.inner or default[1]
    recipe = Recipe(epochs=inner, batch=method.batch_net, lr=method.lr_net, augment=dsa.strategy)
    student, losses, rows = Student(problem.starts.draw()), [], None
    for t in range(outer):
        rows = chosen_rows(method, problem, student.vector, t, rows)
        loss, gradient = match(method, problem, student.vector, state.images, dsa, rows)
        descend(state, gradient, method.lr_img, method.momentum)
        losses.append(loss / problem.classes)
        if t < outer - 1:
            decoder = problem.decoder
            pool = problem.frozen.pool(decoder(state.images), decoder.labels(state.labels))
            student = fit(problem.network, student, pool, recipe, drawn_seed(), what=None)
    return state, {"loss": torch.stack(losses).mean()}


def match(
    method: Dc, problem: Problem, vector: Tensor, images: Tensor, dsa: DSA, chosen: Rows | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of D over classes in the network ``vector``, and its gradient ``(n, c, h, w)`` by stored ``images``.

    Networks with batch norm use the statistics in ``vector``: those of a batch of one class would hide the class.
    Real images are drawn at random, or those ``chosen`` for each class.
    """
    network, total, gradients = problem.network, torch.zeros((), device=images.device), []
    vector, train = frozen_statistics(problem, vector), network.length == network.parameters
    for label in range(problem.classes):
        leaf = images[rows_of(problem, label)].detach().requires_grad_()
        real, synthetic = real_images(problem, label, method.batch_real, chosen), shown_images(problem, leaf, label)
        real, synthetic = siamese(dsa, real, synthetic)
        g_real = class_gradient(network, vector, real, label, train=train).detach()
        g_syn = class_gradient(network, vector, synthetic, label, train=train, differentiable=True)
        loss = distance(network, g_real, g_syn, method.metric)
        gradients += grad(loss, leaf)
        total = total + loss.detach()
    return total, torch.cat(gradients)


@torch.no_grad()
def frozen_statistics(problem: Problem, vector: Tensor) -> Tensor:
    """``vector`` with batch norm's mean and variance set to those of 16 real images per class; without it, as it is.

    Training moves a statistic b to b + m (s - b) for that s of the batch, with a momentum m that belongs to the
    module: two passes tell m, and s with it. The released code takes one such step and so keeps 90 % of b.
    """
    network = problem.network
    if network.length == network.parameters:
        return vector
    real = torch.cat([real_images(problem, label, BATCH_NORM) for label in range(problem.classes)])
    theta, before = vector.split([network.parameters, network.length - network.parameters])
    same = drawn_seed()  # both passes must drop the same units
    with same.scope():
        after = network.apply_with_buffers(vector, real)[1]
    moving = after != before  # buffers of another kind stay what they are
    with same.scope():
        shifted = network.apply_with_buffers(torch.cat([theta, before + moving]), real)[1]
    m = 1 - (shifted - after)
    return torch.cat([theta, torch.where(moving, before + (after - before) / m, before)])


def loops(ipc: int) -> tuple[int, int]:
    """(outer, inner) for ``ipc`` images per class: as published, and for other ipc on the line between.

    Up to ipc 50 ``outer`` is ipc itself; from there on both stay.
    """
    known = sorted(LOOPS)
    if ipc >= known[-1]:
        return LOOPS[known[-1]]
    above = known[bisect_left(known, ipc)]
    if ipc == above:
        return LOOPS[ipc]
    below = known[bisect_left(known, ipc) - 1]
    share = (ipc - below) / (above - below)
    return ipc, round(LOOPS[below][1] + share * (LOOPS[above][1] - LOOPS[below][1]))
