"""Choosing by features: what networks trained on the real data make of the images of a class.

Shapes: m images of a class, f features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ddbench import Examples, Needs, Problem
from ddbench_coresets.coreset import Coreset
from ddbench_coresets.taken import taken

AT_ONCE = 256  # images per forward pass


@dataclass(frozen=True)
class ByFeatures(Coreset):
    """A coreset that picks images by the features of the first ``experts`` networks after ``epochs`` epochs.

    The features stand side by side, in evaluation mode: a squared distance is the sum of those in each network. One
    class is held at a time.
    """

    epochs: Annotated[int, Ge(1), "epochs of the experts after which features are taken"] = 20

    def reads(self) -> tuple[int, ...]:
        return (self.epochs,)

    def pick(self, features: Tensor, taken: Tensor, count: int) -> Tensor:
        """``count`` rows of ``features`` ``(m, f)``, none of them in ``taken``."""
        raise NotImplementedError

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError where no expert is worth training, since the network has no features."""
        needs = super().needs(problem)
        check_features(problem)
        return needs

    @torch.no_grad()
    def choose(self, problem: Problem) -> Examples:
        vectors = [problem.experts.snapshot(i, self.epochs) for i in range(self.experts)]
        chosen = []
        for members, gone in zip(problem.real.members, taken(problem), strict=True):
            picked = self.pick(features_of(problem, vectors, members), gone, problem.shown)
            chosen.append(members[picked.cpu()])
        return problem.pack(torch.cat(chosen))


def check_features(problem: Problem) -> None:
    """Raise UsageError where the network has no features."""
    network = problem.network
    nothing = torch.zeros(network.length, device=network.device, dtype=network.dtype)
    blank = torch.zeros(1, *network.shape, device=network.device, dtype=network.dtype)
    network.features(nothing, blank, train=False)


def features_of(problem: Problem, vectors: list[Tensor], rows: Tensor) -> Tensor:
    """What each network of ``vectors`` makes of the real images ``rows`` ``(m,)``, side by side: ``(m, f)``."""
    return torch.cat([_features(problem, vectors, part) for part in rows.split(AT_ONCE)])


def _features(problem: Problem, vectors: list[Tensor], rows: Tensor) -> Tensor:
    images = problem.real[rows].images
    return torch.cat([problem.network.features(v, images, train=False) for v in vectors], 1)
