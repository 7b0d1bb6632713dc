"""A curriculum of difficulty for experts: which of the real images an epoch shows.

What is hard is found by other networks first, from the same starts, by the same recipe without a curriculum. An order
is therefore a function of what the experts' key holds already.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddbench.data.dataset import RealData
from ddbench.errors import UsageError
from ddbench.train.fit import Recipe, Rows, predict

if TYPE_CHECKING:
    from ddbench.problem.experts import Experts

JUDGES = 5  # networks that say what is hard
JUDGED = 5  # epochs after which they are asked, or all of a shorter training


def check_pacing(recipe: Recipe) -> None:
    """Raise UsageError for a curriculum that no training can follow."""
    if recipe.easy < 1 and not recipe.all_after:
        raise UsageError(f"easy {recipe.easy:g} begins with a part of the images; give all_after, when all are there")
    if len(recipe.drop) != len(recipe.drop_after):
        raise UsageError(
            f"drop_after names {len(recipe.drop_after)} epochs and drop {len(recipe.drop)} shares; give as many of both"
        )
    if any(not 0 <= share < 1 for share in recipe.drop):
        raise UsageError(f"drop {recipe.drop} has a share outside of 0 .. 1; give what is left out, say 0.1")


def places(recipe: Recipe, epoch: int, count: int) -> slice:
    """Which places in the order of a class of ``count`` images, the easiest first, ``epoch`` shows, counted from 0.

    With a = ``easy`` and b = ``all_after``, epochs e <= b show the easiest min(1, a + (1 - a) e / b); later ones leave
    out the easiest ``drop`` of the last ``drop_after`` < e (Li et al., "Prioritize Alignment in Dataset Distillation",
    2024).
    """
    if recipe.all_after and epoch <= recipe.all_after:
        share = min(1.0, recipe.easy + (1 - recipe.easy) * epoch / recipe.all_after)
        return slice(0, max(1, int(share * count)))
    gone = [share for after, share in zip(recipe.drop_after, recipe.drop, strict=True) if epoch > after]
    return slice(int(gone[-1] * count) if gone else 0, count)


def rows_by_difficulty(experts: Experts) -> Rows | None:
    """The rows of the real data that an epoch of ``experts`` shows, by :func:`places`; None where each shows all."""
    recipe = experts.recipe
    if recipe.easy == 1 and not recipe.drop_after:
        return None
    if not isinstance(experts.real, RealData):
        raise UsageError(
            "experts.easy and experts.drop order images of classes, and a network here learns something else; leave "
            "them out"
        )
    errors = difficulty(experts, experts.real)
    orders = [members[errors[members].argsort(stable=True)] for members in experts.real.members]

    def rows(epoch: int) -> Tensor:
        return torch.cat([order[places(recipe, epoch, len(order))] for order in orders])

    return rows


def difficulty(experts: Experts, real: RealData) -> Tensor:
    """EL2N of each real image ``(n,)``, float64: the mean over networks of ``|softmax(f(x)) - onehot(y)|_2``.

    Paul, Ganguli & Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021. Networks are asked in evaluation mode, on
    unaugmented images; where earlier stages teach the starts, these are taught, too.
    """
    recipe, starts = experts.recipe, experts.starts
    epoch = min(JUDGED, recipe.epochs or JUDGED)
    if starts.count is not None:  # as many as judge, however many experts there are: these are not in their key
        starts = replace(starts, count=max(starts.count, JUDGES))
    judges = replace(experts, starts=starts, recipe=replace(recipe, easy=1.0, all_after=0, drop_after=(), drop=()))
    judges.build(JUDGES, (epoch,))
    total = torch.zeros(len(real), dtype=torch.float64)
    for judge in range(JUDGES):
        logits, targets = predict(starts.network, judges.snapshot(judge, epoch), real)
        total += errors_of(logits.double(), targets)
    return total / JUDGES


def errors_of(logits: Tensor, targets: Tensor) -> Tensor:
    """``|softmax(logits) - onehot(targets)|_2`` of each row, ``(n,)`` from ``(n, k)`` and ``(n,)``."""
    wrong = logits.softmax(1)
    wrong[torch.arange(len(targets)), targets] -= 1
    return wrong.norm(dim=1)
