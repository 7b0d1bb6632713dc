"""Soft labels from experts: what trained networks say of images."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.problem.problem import Problem


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
