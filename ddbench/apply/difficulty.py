"""How hard trained networks find images, and real images that are as hard as those of a set.

The score is EL2N (Paul, Ganguli & Dziugaite, NeurIPS 2021), |softmax(f(x)) - onehot(y)|_2, the mean over the networks
that label. Not the cross entropy: that has no bound, and the few images that networks get wrong would decide which
real images are near; EL2N lies in [0, sqrt(2)]. Shapes: n images, m real images of a class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.problem.labels import teacher_labels
from ddbench.problem.problem import Problem
from ddbench.train.fit import Source

AT_ONCE = 256  # images per forward pass


@torch.no_grad()
def difficulty(problem: Problem, source: Source, experts: int, epoch: int) -> Tensor:
    """EL2N ``(n,)`` of examples with one-hot labels, float64 on the CPU: over ``experts``, each after ``epoch``."""
    total = torch.zeros(len(source), dtype=torch.float64)
    for i in range(experts):
        vector, parts = problem.experts.snapshot(i, epoch), []
        for rows in torch.arange(len(source)).split(AT_ONCE):
            batch = source[rows]
            parts.append((teacher_labels(problem, batch.images, vector) - batch.labels).norm(dim=1))
        total += torch.cat(parts).cpu().double()
    return total / experts


def as_hard(wanted: Tensor, scores: Tensor) -> Tensor:
    """For each of the ``wanted`` scores ``(n,)`` a place in ``scores`` ``(m,)``, none twice: as near as all can be.

    The sum of the distances is the least there is (an assignment problem), so that no order of the images matters.
    """
    from scipy.optimize import linear_sum_assignment

    apart = (wanted[:, None] - scores[None]).abs()
    rows, columns = linear_sum_assignment(apart.numpy())
    found = torch.empty(len(wanted), dtype=torch.int64)
    found[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return found


def matched(problem: Problem, classes: Tensor, wanted: Tensor, scores: Tensor) -> Tensor:
    """Rows ``(n,)`` of the real images as hard as the images of a set, class by class.

    ``classes`` ``(n,)`` and ``wanted`` ``(n,)`` are of the set's images, ``scores`` of all real ones. Raises UsageError
    where a class has fewer real images than the set.
    """
    chosen = []
    for label, members in enumerate(problem.real.members):
        own = wanted[classes == label]
        if len(own) > len(members):
            raise UsageError(
                f"the set has {len(own)} images of class {label}, but there are {len(members)} real ones to match them "
                "with; leave matched out of --coresets"
            )
        chosen.append(members.cpu()[as_hard(own, scores[members.cpu()])])
    return torch.cat(chosen)
