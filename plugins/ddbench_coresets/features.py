"""Choosing by features: what networks trained on the real data make of the images of a class.

Shapes: m images of a class, f features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddbench import Examples, Needs, Problem
from ddbench_coresets.coreset import check_budget
from ddbench_coresets.taken import taken

AT_ONCE = 256  # images per forward pass

# (features (m, f), images already taken, how many more) -> those chosen, as rows of the features
Pick = Callable[[Tensor, Tensor, int], Tensor]


def check_features(problem: Problem, needs: Needs) -> Needs:
    """``needs``, unless no expert is worth training: too few images, or a network without features (UsageError)."""
    check_budget(problem)
    network = problem.network
    nothing = torch.zeros(network.length, device=network.device, dtype=network.dtype)
    blank = torch.zeros(1, *network.shape, device=network.device, dtype=network.dtype)
    network.features(nothing, blank, train=False)
    return needs


@torch.no_grad()
def choose_by_features(problem: Problem, experts: int, epochs: int, pick: Pick) -> Examples:
    """What ``pick`` chooses of each class, as stored images.

    The features are those of the first ``experts`` networks after ``epochs`` epochs, side by side, in evaluation
    mode: a squared distance is the sum of those in each network. One class is held at a time.
    """
    vectors = [problem.experts.snapshot(i, epochs) for i in range(experts)]
    chosen = []
    for members, gone in zip(problem.real.members, taken(problem), strict=True):
        features = torch.cat([_features(problem, vectors, rows) for rows in members.split(AT_ONCE)])
        chosen.append(members[pick(features, gone, problem.shown).cpu()])
    return problem.pack(torch.cat(chosen))


def _features(problem: Problem, vectors: list[Tensor], rows: Tensor) -> Tensor:
    images = problem.real[rows].images
    return torch.cat([problem.network.features(v, images, train=False) for v in vectors], 1)
