"""Which real images earlier stages took: found by comparing images, since sets do not tell.

Choosing anew what earlier stages chose would not do: under ``pdd`` the networks of a later stage are others, and so
is what they choose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench import Problem
from ddbench.problem.decode import Decoder

# of preprocessed pixels: ten times what the order of sums in ZCA does, and half of one grey level in a cell of 8x8
SAME = 1e-4
AT_ONCE = 256  # images that are compared at a time


def taken(problem: Problem) -> list[Tensor]:
    """For each class, where in ``problem.real.members`` the images are that earlier stages hold, in their order.

    Of real images that are alike, each accounts for one frozen image. A frozen image that is like no real one (that of
    a method which learns its images) takes none.
    """
    return [_taken(problem, label) for label in range(problem.classes)]


def _taken(problem: Problem, label: int) -> Tensor:
    members = problem.real.members[label]
    found: list[int] = []
    for made in problem.frozen.sets:
        per_class = len(made) // problem.classes
        held = made.decoder(made.images[label * per_class : (label + 1) * per_class]).flatten(1)
        gaps = torch.cat([_gaps(problem, made.decoder, held, rows) for rows in members.split(AT_ONCE)], 1)
        for row in gaps:
            row[found] = torch.inf
            nearest = int(row.argmin())
            if row[nearest] < SAME:
                found.append(nearest)
    return torch.tensor(found, dtype=torch.int64)


def _gaps(problem: Problem, decoder: Decoder, held: Tensor, rows: Tensor) -> Tensor:
    """The largest difference ``(b, n)`` of each frozen image ``(b, d)`` from the real images ``rows`` ``(n,)``.

    A frozen image came from one place in a stored one, and is compared with what the real ones would be there.
    """
    images = problem.real[rows].images.repeat_interleave(decoder.copies, 0)
    there = decoder(decoder.pack(images)).flatten(1)
    gaps = held.new_empty(len(held), len(rows))
    for place in range(decoder.copies):
        own = held[place :: decoder.copies]
        gaps[place :: decoder.copies] = torch.cdist(own, there[place :: decoder.copies], p=torch.inf)
    return gaps
