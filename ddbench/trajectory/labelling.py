"""What experts call the images of a set: the soft labels of trajectory matchers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddbench.problem.labels import mean_labels
from ddbench.problem.problem import Problem
from ddbench.trajectory.decoded import mean_of_copies

if TYPE_CHECKING:
    from ddbench.trajectory.method import Method


def teacher_epoch(method: Method) -> int:
    """The epochs of the experts that label; by default where the last segment ends."""
    return method.teacher_epochs or method.max_start - 1 + method.span


def ensemble_labels(method: Method, problem: Problem, images: Tensor) -> Tensor:
    """The mean prediction ``(n, k)`` of all experts, after ``teacher_epochs`` or where the last segment ends.

    That of a stored image is the mean over those that it decodes to. A function of images and experts alone. The
    released TESLA stores the predictions of whichever segment its last iteration happened to draw.
    """
    size = at_once(method)

    def labelled(stored: Tensor) -> Tensor:
        decoded = problem.decoder(stored)
        made = mean_labels(problem, decoded, method.experts, teacher_epoch(method), size)
        return mean_of_copies(made, problem.decoder)

    return torch.cat([labelled(part) for part in images.split(32 * size)])  # decoded, all may be gigabytes


def at_once(method: Method) -> int:
    """Images per forward pass: no more than the student's step takes, whose graph is larger."""
    return method.batch_syn or 256
