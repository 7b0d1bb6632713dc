"""Moderate, CCS and D2: ways to prune a dataset, taken as coresets of a few images per class.

They were made to keep tens of percent of a dataset; here they choose the same few images per class as methods that
learn theirs, so that both compare at one budget. Each class is pruned by itself.

Shapes: m images of a class, f features, n real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ddbench import Examples, Needs, Problem
from ddbench_coresets.coreset import Coreset
from ddbench_coresets.features import ByFeatures, check_features, features_of
from ddbench_coresets.scored import AT_ONCE
from ddbench_coresets.taken import taken

Cutoff = Annotated[float, Ge(0), Lt(1), "share of the hardest images of a class that is left out"]


@dataclass(frozen=True)
class Moderate(ByFeatures):
    """Images at the median distance from the centre of their class (Xia et al., ICLR 2023).

    Images are ranked by ``|phi(x) - mean phi|``, and those in the middle of the ranks are taken, half of them from
    either side. The paper's centre is the mean; its released code has the median of each feature.
    """

    name = "moderate"
    paper = "Xia et al., ICLR 2023"
    paper_url = "https://openreview.net/forum?id=7D5EECbOaf9"

    def pick(self, features: Tensor, taken: Tensor, count: int) -> Tensor:
        return moderate(features, taken, count)


@dataclass(frozen=True)
class _ByMargin(Coreset):
    """A coreset that knows how hard an image is by its area under the margin (Pleiss et al., NeurIPS 2020)."""

    epochs: Annotated[int, Ge(1), "epochs of the experts over which margins are averaged"] = 20
    cutoff: Cutoff = 0.3

    def reads(self) -> tuple[int, ...]:
        return tuple(range(1, self.epochs + 1))


@dataclass(frozen=True)
class Ccs(_ByMargin):
    """As many images of every difficulty (coverage-centric coreset selection, Zheng et al., ICLR 2023, algorithm 1).

    The ``cutoff`` hardest of a class are left out; the scores of the others are cut into ``strata`` ranges of one
    width, and the budget goes to the ranges in equal shares, the emptiest range first; within a range images are drawn.

    The score is the area under the margin, as in the paper: the mean over the snapshots after each of ``epochs`` epochs
    and over ``experts`` networks of the logit of the true class less the largest other one. It is taken on unaugmented
    images after each epoch; the paper sums it within training. ``cutoff`` is the published one where a tenth is
    kept. Here classes are sampled one by one, so that each has its images; the code draws from all of them.
    """

    name = "ccs"
    paper = "Zheng et al., ICLR 2023"
    paper_url = "https://arxiv.org/abs/2210.15809"
    strata: Annotated[int, Ge(1), "ranges of the score"] = 50

    def choose(self, problem: Problem) -> Examples:
        scores, chosen = margins(problem, self.experts, self.reads()), []
        for members, gone in zip(problem.real.members, taken(problem), strict=True):
            free = _left(scores[members], gone, self.cutoff, problem.shown)
            chosen.append(members[free[stratified(scores[members[free]], problem.shown, self.strata)]])
        return problem.pack(torch.cat(chosen))


@dataclass(frozen=True)
class D2(_ByMargin):
    """Hard images that stand for others, and not for each other (D2 pruning, Maharana, Yadav & Bansal, ICLR 2024).

    A graph joins each image of a class to its ``neighbours`` nearest in features (those of the experts after ``epochs``
    epochs, side by side), and the other way round. With s the difficulty of an image and d the distance,

        s_i <- s_i + sum_j exp(-gamma_forward d_ij) s_j          once, over the neighbours j of i
        s_j <- s_j - exp(-gamma_reverse d_ij) s_i                for the neighbours j of each image i that is taken

    and the image of the largest s is taken next. Images that earlier stages hold are taken first.

    The paper squares d, the released code does not, as here; ``gamma_forward`` is the code's 1 and ``gamma_reverse``
    that of its commands. Distances are in units of the mean over the graph, so that networks do not matter.
    Difficulty is the area under the margin, turned round to begin at 0 with the easiest image; the code's commands for
    CIFAR-10 count forgetting events. The ``cutoff`` hardest are left out first (0.4 there).
    """

    name = "d2"
    paper = "Maharana et al., ICLR 2024"
    paper_url = "https://arxiv.org/abs/2310.07931"
    neighbours: Annotated[int, Ge(1), "images that an image is joined to"] = 10
    gamma_forward: Annotated[float, Ge(0), "how fast what neighbours add falls with their distance"] = 1.0
    gamma_reverse: Annotated[float, Ge(0), "how fast what a taken image costs falls with its distance"] = 0.1

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError where no expert is worth training, since the network has no features."""
        needs = super().needs(problem)
        check_features(problem)
        return needs

    @torch.no_grad()
    def choose(self, problem: Problem) -> Examples:
        scores, chosen = margins(problem, self.experts, self.reads()), []
        vectors = [problem.experts.snapshot(i, self.epochs) for i in range(self.experts)]
        for members, gone in zip(problem.real.members, taken(problem), strict=True):
            own = scores[members]
            free = torch.cat([gone, _left(own, gone, self.cutoff, problem.shown)])
            features = features_of(problem, vectors, members[free]).cpu().double()
            hard = own.max() - own[free]
            first = torch.arange(len(gone))
            picked = spread(
                features, hard, first, problem.shown, self.neighbours, self.gamma_forward, self.gamma_reverse
            )
            chosen.append(members[free[picked]])
        return problem.pack(torch.cat(chosen))


@torch.no_grad()
def margins(problem: Problem, experts: int, epochs: tuple[int, ...]) -> Tensor:
    """The area under the margin of each real image ``(n,)``, float64: large where networks are sure and right."""
    total = torch.zeros(len(problem.real), dtype=torch.float64)
    for expert in range(experts):
        for epoch in epochs:
            vector = problem.experts.snapshot(expert, epoch)
            batches = problem.real.at_hand.batches(AT_ONCE)
            parts = [margin(problem.network.apply(vector, b.images, train=False), b.labels) for b in batches]
            total += torch.cat(parts).cpu().double()
    return total / (experts * len(epochs))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit of the true class less the largest other one, ``(n,)`` from ``(n, k)`` and one-hot ``(n, k)``."""
    own = (logits * labels).sum(1)
    return own - logits.masked_fill(labels > 0, -torch.inf).amax(1)


def moderate(features: Tensor, taken: Tensor, count: int) -> Tensor:
    """``count`` rows of ``features`` ``(m, f)``, none in ``taken``, whose distance from the mean is in the middle."""
    order = (features - features.mean(0)).norm(dim=1).argsort(stable=True)
    places = torch.arange(len(order), device=order.device).double()
    middle = order[(places - (len(order) - 1) / 2).abs().argsort(stable=True)]
    return middle[~torch.isin(middle, taken.to(middle.device))][:count]


def stratified(scores: Tensor, count: int, strata: int) -> Tensor:
    """``count`` places in ``scores`` ``(m,)``, drawn in equal shares from ranges of one width, the emptiest first."""
    low, width = scores.min(), (scores.max() - scores.min()).clamp_min(1e-30) / strata
    of = ((scores - low) / width).long().clamp_max(strata - 1)
    ranges = sorted((torch.nonzero(of == s).flatten() for s in of.unique()), key=len)
    chosen: list[Tensor] = []
    for done, members in enumerate(ranges):
        share = min(len(members), count // (len(ranges) - done))
        chosen.append(members[torch.randperm(len(members))[:share]])
        count -= share
    return torch.cat(chosen)


def spread(
    features: Tensor, scores: Tensor, first: Tensor, count: int, neighbours: int, forward: float, reverse: float
) -> Tensor:
    """``count`` rows of ``features`` ``(m, f)`` after those in ``first``, by messages over the ``scores`` ``(m,)``."""
    distances = torch.cdist(features, features)
    nearest = distances.fill_diagonal_(torch.inf).topk(min(neighbours, len(features) - 1), largest=False).indices
    joined = torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, value=True)
    joined = joined | joined.T
    unit = distances[joined].mean().clamp_min(1e-30) if joined.any() else 1.0
    weight, cost = (torch.where(joined, (-gamma * distances / unit).exp(), 0.0) for gamma in (forward, reverse))
    values = scores + weight @ scores
    chosen: list[int] = []
    free = torch.ones(len(scores), dtype=torch.bool)
    for step in range(len(first) + count):
        best = int(first[step]) if step < len(first) else int(values.masked_fill(~free, -torch.inf).argmax())
        chosen.append(best)
        free[best] = False
        values = values - cost[best] * values[best]
    return torch.tensor(chosen[len(first) :], dtype=torch.int64)


def _left(scores: Tensor, gone: Tensor, cutoff: float, count: int) -> Tensor:
    """Places in the ``scores`` ``(m,)`` of a class but for ``gone`` and the hardest; never fewer than ``count``."""
    easiest = scores.argsort(descending=True, stable=True)
    easiest = easiest[: max(len(scores) - int(cutoff * len(scores)), 0)]
    kept = easiest[~torch.isin(easiest, gone)]
    if len(kept) < count:
        everything = scores.argsort(descending=True, stable=True)
        kept = everything[~torch.isin(everything, gone)][:count]
    return kept.sort().values
