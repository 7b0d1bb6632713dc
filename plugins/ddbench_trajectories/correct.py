"""Real images that experts classify correctly, and the logits that they give: where DATM starts.

Shapes: m images of a class in question, e experts, k classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ddbench import Examples, Problem, UsageError
from ddbench.problem.decode import Decoder

AT_ONCE = 256  # images per forward pass
TOGETHER = 4096  # images whose logits are held for one reading of every expert


def correct_images(problem: Problem, experts: int, epoch: int) -> Examples:
    """For each class, real images that expert 0 classifies correctly after ``epoch`` epochs, as stored ones.

    They come in random order. Where the class has too few, experts 1, 2, ... are asked about the others; and where all
    have been asked, those come next whose true class has the largest mean probability. Images that earlier stages
    started from are left out.
    """
    chosen = []
    for label, members in enumerate(problem.real.members):
        left = members[~torch.isin(members, taken(problem, label))]
        walk = left[torch.randperm(len(left))]
        chosen.append(_walked(problem, label, walk, experts, epoch))
    return problem.pack(torch.cat(chosen))


def check_budget(problem: Problem) -> None:
    """Raise UsageError, before any expert is trained, when a class has too few images to start from."""
    gone = sum(len(s) * s.decoder.copies for s in problem.frozen.sets) // problem.classes
    if gone + problem.shown > problem.real.smallest_class:
        raise UsageError(
            f"{gone + problem.shown} real images per class to start from, but the smallest class has "
            f"{problem.real.smallest_class}; choose a smaller --ipc"
        )


def _walked(problem: Problem, label: int, walk: Tensor, experts: int, epoch: int) -> Tensor:
    """The first ``shown`` of ``walk`` ``(m,)`` that an expert classifies as ``label``."""
    taken, left = walk[:0], walk
    belief = torch.zeros(len(problem.real))  # in the true class, summed over experts; only those left count
    for expert in range(experts):
        vector, wrong = problem.experts.snapshot(expert, epoch), []
        for rows in left.split(AT_ONCE):
            if len(taken) >= problem.shown:
                break
            logits = _logits(problem, vector, problem.real[rows].images).cpu()
            right = logits.argmax(1) == label
            belief[rows] += logits.softmax(1)[:, label]
            taken = torch.cat([taken, rows[right]])
            wrong.append(rows[~right])
        if len(taken) >= problem.shown:
            return taken[: problem.shown]
        left = torch.cat(wrong) if wrong else left
    nearest = left[belief[left].argsort(descending=True, stable=True)]
    return torch.cat([taken, nearest])[: problem.shown]


def taken(problem: Problem, label: int) -> Tensor:
    """The rows of ``problem.real`` that the frozen images of a class started from: to each the nearest, none twice.

    Sets do not tell, and the experts of an earlier stage are not those of this one. An image that has been moved is
    still nearest to where it began, since there are so many directions to move in.
    """
    members = problem.real.members[label]
    found: list[int] = []
    for made in problem.frozen.sets:
        per_class = len(made) // problem.classes
        held = made.decoder(made.images[label * per_class : (label + 1) * per_class]).flatten(1)
        gaps = torch.cat([_gaps(problem, made.decoder, held, rows) for rows in members.split(AT_ONCE)], 1).cpu()
        gaps[:, found] = torch.inf
        for _ in held:
            row, column = divmod(int(gaps.argmin()), len(members))  # of all, the clearest first
            found.append(column)
            gaps[row], gaps[:, column] = torch.inf, torch.inf
    return members[found]


def _gaps(problem: Problem, decoder: Decoder, held: Tensor, rows: Tensor) -> Tensor:
    """The distances ``(d, m)`` of decoded images ``(d, p)`` from the real images ``rows`` ``(m,)`` in their place."""
    images = problem.real[rows].images.repeat_interleave(decoder.copies, 0)
    there = decoder(decoder.pack(images)).flatten(1)
    gaps = held.new_empty(len(held), len(rows))
    for place in range(decoder.copies):
        gaps[place :: decoder.copies] = torch.cdist(held[place :: decoder.copies], there[place :: decoder.copies])
    return gaps


def expert_logits(problem: Problem, stored: Examples, experts: int, epoch: int) -> Tensor:
    """The first label logits ``(n, k)`` of ``stored`` images: what experts say after ``epoch`` epochs.

    Whose word counts, :func:`agreed` says. A stored image has the mean over those that it decodes to.
    """
    parts = []
    for rows in torch.arange(len(stored), device=stored.images.device).split(TOGETHER):
        part = stored[rows]
        images, labels = problem.decoder(part.images), problem.decoder.labels(part.labels).argmax(1)
        said = (_logits(problem, problem.experts.snapshot(i, epoch), images) for i in range(experts))
        parts.append(agreed(said, labels).view(len(part), problem.decoder.copies, -1).mean(1))
    return torch.cat(parts)


def agreed(said: Iterable[Tensor], labels: Tensor) -> Tensor:
    """The mean ``(m, k)`` of the logits of those experts that are right about ``labels`` ``(m,)``.

    ``said`` are the logits ``(m, k)`` of one expert after the other.
    Where none is right, the mean of all, with the largest logit and that of the true class exchanged: as unsure as
    the experts are, and not wrong.
    """
    true = labels.unsqueeze(1)
    everyone, agreeing, count = [torch.zeros((), device=labels.device)] * 3
    asked = 0
    for asked, logits in enumerate(said, 1):  # noqa: B007 - how many there were
        right = logits.argmax(1, keepdim=True) == true
        everyone, agreeing, count = everyone + logits, agreeing + logits * right, count + right
    top = everyone.argmax(1, keepdim=True)
    exchanged = everyone.scatter(1, top, everyone.gather(1, true)).scatter(1, true, everyone.gather(1, top))
    return torch.where(count > 0, agreeing / count.clamp(min=1), exchanged / asked)


@torch.no_grad()
def _logits(problem: Problem, vector: Tensor, images: Tensor) -> Tensor:
    """``(m, k)``, in evaluation mode, AT_ONCE at a time."""
    return torch.cat([problem.network.apply(vector, part, train=False) for part in images.split(AT_ONCE)])
