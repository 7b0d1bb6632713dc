"""The pieces of experts' trajectories that students are to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddbench.problem.problem import Problem

if TYPE_CHECKING:
    from ddbench.trajectory.method import Method


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of an expert's trajectory, which a student is to follow."""

    expert: int
    epoch: int
    start: Tensor  # theta*_s
    target: Tensor  # theta*_{s+M}

    @classmethod
    def draw(cls, method: Method, problem: Problem, starts: range | None = None) -> Segment:
        """A segment that begins at one of ``starts``, by default any that the method names."""
        starts = starts or range(method.max_start)
        expert, epoch = int(torch.randint(method.experts, ())), int(torch.randint(starts.start, starts.stop, ()))
        return cls(expert, epoch, *problem.experts.segment(expert, epoch, method.span))

    def buffers(self, problem: Problem) -> Tensor:
        """The batch-norm buffers of its first snapshot; empty for networks without."""
        if problem.network.length == problem.network.parameters:
            return torch.empty(0, device=problem.network.device)  # nothing to read from the file, in every step
        return problem.experts.snapshot(self.expert, self.epoch)[problem.network.parameters :]
