"""Forgetting and EL2N: images by how hard networks find them while they learn.

Shapes: n real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from ddbench import Examples, Problem, Published
from ddbench.problem.labels import forgotten, right
from ddbench_coresets.coreset import Coreset
from ddbench_coresets.taken import taken

AT_ONCE = 256  # images per forward pass

Order = Annotated[Literal["easiest", "moderate", "hardest"], "which images of a class are taken"]


@dataclass(frozen=True)
class Forgetting(Coreset):
    """Images by how often they were right after an epoch and wrong after the next (Toneva et al., ICLR 2019).

    Counted on the unaugmented training images, over the snapshots after each of ``epochs`` epochs, and summed over
    ``experts`` networks; the paper counts within training, at each image's own batch. An image that a network never
    gets right counts as forgotten in every epoch (the paper: infinitely often). Ties are broken at random.

    ``order="hardest"`` is what published tables call forgetting: the most forgotten images. It is far below random
    images where there are few of them (CIFAR-10, 10 images per class: 23.3 % against 31.0 %). The default is what is
    best on validation data of 3000 images of CIFAR-10 (width 16, one seed, 300 validation images): at 10 images
    per class 31.7 % (easiest), 30.7 % (moderate), 5.7 % (hardest), beside 25.0 % for random images; at 1 image 20.0 %
    (easiest), 15.3 % (moderate), 14.7 % (random). With a standard error of 2 to 3 points that speaks against the
    hardest, hardly for easiest over moderate.
    """

    name = "forgetting"
    paper = "Toneva et al., ICLR 2019"
    paper_url = "https://arxiv.org/abs/1812.05159"
    published = (Published("Forgetting", "hard"),)
    epochs: Annotated[int, Ge(2), "epochs of the experts over which events are counted"] = 20
    order: Order = "easiest"

    def reads(self) -> tuple[int, ...]:
        return tuple(range(1, self.epochs + 1))

    def choose(self, problem: Problem) -> Examples:
        scores = torch.zeros(len(problem.real), dtype=torch.int64)
        for expert in range(self.experts):
            vectors = (problem.experts.snapshot(expert, epoch) for epoch in self.reads())
            scores += forgotten(torch.stack([right(problem, v, AT_ONCE) for v in vectors]))
        return choose_by_score(problem, scores, self.order)


@dataclass(frozen=True)
class El2n(Coreset):
    """Images by the error of networks early in training (Paul, Ganguli & Dziugaite, NeurIPS 2021).

    The score is the mean over ``experts`` networks after ``epochs`` epochs of ``|softmax(f(x)) - onehot(y)|_2``, in
    evaluation mode, on unaugmented images. The paper has 10 networks after a tenth of training, and keeps large
    parts of a dataset, ``order="hardest"``; with few images per class that is worse than random images. The default is
    what is best on validation data, as for ``forgetting``: at 10 images per class 34.3 % (easiest), 27.3 % (moderate),
    7.0 % (hardest); at 1 image 24.3 % (easiest) and 15.7 % (moderate).
    """

    name = "el2n"
    paper = "Paul, Ganguli & Dziugaite, NeurIPS 2021"
    paper_url = "https://arxiv.org/abs/2107.07075"
    experts: Annotated[int, Ge(1), "networks whose errors are averaged, and that label (labels=teacher)"] = 10
    epochs: Annotated[int, Ge(1), "epochs after which errors are measured"] = 5
    order: Order = "easiest"

    def reads(self) -> tuple[int, ...]:
        return (self.epochs,)

    def choose(self, problem: Problem) -> Examples:
        errors = sum(_errors(problem, problem.experts.snapshot(i, self.epochs)) for i in range(self.experts))
        assert isinstance(errors, Tensor)
        return choose_by_score(problem, errors / self.experts, self.order)


def choose_by_score(problem: Problem, scores: Tensor, order: str) -> Examples:
    """Of each class the first images by ``scores`` ``(n,)`` that no earlier stage took, as stored ones."""
    chosen = []
    for members, gone in zip(problem.real.members, taken(problem), strict=True):
        ranked = rank(scores[members], order)
        chosen.append(members[ranked[~torch.isin(ranked, gone)][: problem.shown]])
    return problem.pack(torch.cat(chosen))


def rank(scores: Tensor, order: str) -> Tensor:
    """All ``(m,)`` images of a class, those to take first: low, middle or high scores; equals in random order.

    ``moderate`` begins at the median of the class (as the moderate coreset of Xia et al., ICLR 2023, does with
    another score) and goes outwards.
    """
    shuffled = torch.randperm(len(scores))
    keys = scores[shuffled].double()
    if order == "moderate":
        keys = (keys - keys.quantile(0.5)).abs()
    return shuffled[keys.argsort(stable=True, descending=order == "hardest")]


@torch.no_grad()
def _errors(problem: Problem, vector: Tensor) -> Tensor:
    """The length of softmax minus one-hot for each real image, ``(n,)``."""
    parts = [
        error_lengths(problem.network.apply(vector, b.images, train=False), b.labels)
        for b in problem.real.at_hand.batches(AT_ONCE)
    ]
    return torch.cat(parts).cpu()


def error_lengths(logits: Tensor, labels: Tensor) -> Tensor:
    """``|softmax(logits) - labels|_2`` of each row, ``(n,)`` from ``(n, k)``."""
    return (logits.softmax(1) - labels).norm(dim=1)
