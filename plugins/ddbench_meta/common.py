"""What frepo and rat-bptt draw: start networks and real images."""

from __future__ import annotations

import torch

from ddbench import Examples, Problem


def real_batch(problem: Problem, size: int) -> Examples:
    """``size`` real images without replacement; all when there are fewer."""
    return problem.real.at_hand[torch.randperm(len(problem.real))[:size]]
