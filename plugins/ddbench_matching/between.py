"""What ncfm and dance share: networks between a model's beginning and its end, and trained ones that calibrate.

Both match in a random mixture of a model's first weights and its last, so that images stand for the real ones at all
ages of training without any training in between, and then ask the trained model whether it knows them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad

from ddbench import Problem, soft_cross_entropy
from ddbench.train.optimisers import Optimiser
from ddbench.train.optimisers import State as Moments
from ddbench_matching.box import matching_augmentation, moved
from ddbench_matching.common import all_of_class, rows_of

# (problem, network vector, stored images of a class, class) -> the loss to descend on
LossOf = Callable[[Problem, Tensor, Tensor, int], Tensor]


def drawn_models(problem: Problem, models: int, epochs: int) -> tuple[Tensor, Tensor]:
    """A mixture of the first and the last weights of one of ``models``, its share uniform in 0 .. 1; and the last."""
    chosen, mixture = int(torch.randint(models, ())), float(torch.rand(()))
    trained = problem.experts.snapshot(chosen, epochs)
    return mixture * problem.experts.snapshot(chosen, 0) + (1 - mixture) * trained, trained


def known_as(problem: Problem, vector: Tensor, shown: Tensor, label: int, augment: str) -> Tensor:
    """The mean cross entropy of images ``(d, c, h, w)`` of a class in the network ``vector``, under one draw."""
    draw = matching_augmentation(problem, augment).draw(1, siamese=True)
    return soft_cross_entropy(problem.network.apply(vector, draw(shown)), all_of_class(label, shown, problem.classes))


def class_by_class(
    problem: Problem,
    vector: Tensor,
    images: Tensor,
    moments: Moments,
    rule: Optimiser,
    rate: float | Tensor,
    loss_of: LossOf,
) -> tuple[Tensor, Moments, Tensor]:
    """All images and moments after a step on each class in turn, whose momentum moves the others; the mean loss."""
    losses = []
    for label in range(problem.classes):
        rows = rows_of(problem, label)
        leaf = images[rows].detach().requires_grad_()
        loss = loss_of(problem, vector, leaf, label)
        # the images may all be missing from a sub-sample with many frozen ones
        gradient = grad(loss, leaf, materialize_grads=True)[0]
        images, moments = moved(rule, images, moments, rows, gradient, rate)
        losses.append(loss.detach())
    return images, moments, torch.stack(losses).mean()
