"""What frepo and rat-bptt draw: start networks and real images."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench import Examples, Problem


def fresh(problem: Problem) -> Tensor:
    """A random start network ``(p,)``: a new initialisation, or one that was taught the frozen images."""
    return problem.starts[int(torch.randint(2**31, ()))]


def real_batch(problem: Problem, size: int) -> Examples:
    """``size`` real images without replacement; all when there are fewer."""
    return problem.real.at_hand[torch.randperm(len(problem.real))[:size]]
