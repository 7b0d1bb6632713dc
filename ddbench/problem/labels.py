"""What trained networks say of images: soft labels, and which they get right."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.problem.problem import Problem


@torch.no_grad()
def right(problem: Problem, vector: Tensor, batch: int = 256) -> Tensor:
    """Whether the network ``vector`` classifies each real image correctly, ``(n,)``, on the CPU."""
    batches = problem.real.at_hand.batches(batch)
    guessed = [problem.network.apply(vector, b.images, train=False).argmax(1).cpu() for b in batches]
    return torch.cat(guessed) == problem.real.targets


def forgotten(right: Tensor) -> Tensor:
    """How often each image was right after an epoch and wrong after the next ``(n,)`` (Toneva et al., ICLR 2019).

    ``right`` ``(epochs, n)`` is whether it was right after each. One that never was counts as forgotten in every epoch.
    """
    lost = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), lost, len(right))


@torch.no_grad()
def teacher_labels(problem: Problem, images: Tensor, vector: Tensor, batch: int = 256) -> Tensor:
    """Probabilities ``(n, k)`` that the network ``vector`` gives to images, in evaluation mode, ``batch`` at a time."""
    parts = [problem.network.apply(vector, part, train=False).softmax(1) for part in images.split(batch)]
    return torch.cat(parts)


def mean_labels(problem: Problem, images: Tensor, experts: int, epoch: int, batch: int = 256) -> Tensor:
    """The mean over the first ``experts`` of their predictions ``(n, k)`` after ``epoch`` epochs."""
    total = torch.zeros(len(images), problem.classes, dtype=images.dtype, device=images.device)
    for i in range(experts):  # one after the other: at 1000 classes the labels of 50,000 images are 200 MB
        total += teacher_labels(problem, images, problem.experts.snapshot(i, epoch), batch)
    return total / experts
