"""SSP: images by their distance from the prototypes of an embedding that was learned without labels.

Shapes: n real images, c channels, h x w pixels, f features, p prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ddbench import Curriculum, Examples, Experts, Needs, Network, Problem, RealData, Recipe, Seed, UsageError
from ddbench_coresets.clusters import centroids
from ddbench_coresets.coreset import Coreset, check_budget
from ddbench_coresets.features import check_features
from ddbench_coresets.scored import AT_ONCE, Order, choose_by_score

TURNS = 4  # by 0, 90, 180 and 270 degrees


@dataclass(frozen=True)
class Ssp(Coreset):
    """Images near to, or far from, the nearest prototype (self-supervised prototypes, Sorscher et al., NeurIPS 2022).

    k-means in the features of a network that never saw a label, over all classes together; the score of an image is the
    cosine distance ``1 - phi(x).c / |phi(x)| |c|`` from the nearest centroid c (its prototype). Of each class
    the lowest scores are taken (``order=easiest``, which the paper's theory advises where data are few), or the
    highest. Labels play no part but that every class gets its images.

    The paper's embedding is SwAV's, of ImageNet; ddbench downloads no weights. Here it is the run's own network that
    learned to tell by how many quarters images were turned (rotation prediction, Gidaris et al., ICLR 2018), for
    ``epochs`` passes over the four turns of every image, without augmentation. Contrastive methods would come nearer to
    SwAV, but stand on augmentations, batch sizes and heads that small grey images do not have; to tell turns, an image
    alone and ddbench's one trainer are enough. What looks alike when it is turned (0, 8) is told apart by less of it.
    The network has a seed of its own, as experts have: runs of all seeds share it; the run's seed decides k-means.
    """

    name = "ssp"
    paper = "Sorscher et al., NeurIPS 2022"
    paper_url = "https://arxiv.org/abs/2206.14486"
    epochs: Annotated[int, Ge(1), "passes over the four turns of every image that the embedding learns from"] = 20
    lr: Annotated[float, Gt(0), "its first learning rate, of a cosine"] = 0.05
    batch: Annotated[int, Ge(1), "its batch size"] = 128
    prototypes: Annotated[int | None, Ge(1), "clusters of k-means; none for as many as classes, as in the paper"] = None
    restarts: Annotated[int, Ge(1), "clusterings from other first centroids, of which the tightest counts"] = 3
    order: Order = "easiest"

    def needs(self, problem: Problem) -> Needs:
        """Raises UsageError, before anything is trained, for images or networks that this cannot choose by."""
        check_budget(problem)
        check_features(problem)
        _, height, width = problem.real.shape
        if height != width:
            raise UsageError(
                f"images of {height}x{width} pixels cannot be turned by 90 degrees, from which matcher 'ssp' "
                "learns its embedding; load them as squares (-o dataset.size=N), or take another coreset (moderate)"
            )
        clusters = self.prototypes or problem.classes
        if clusters > len(problem.real):
            raise UsageError(
                f"{clusters} prototypes asked for, but there are {len(problem.real)} training images; lower "
                "matcher.prototypes"
            )
        return super().needs(problem)

    def choose(self, problem: Problem) -> Examples:
        network, vector = self.embedding(problem)
        parts = torch.arange(len(problem.real)).split(AT_ONCE)
        with torch.no_grad():
            features = torch.cat([network.features(vector, problem.real[rows].images, train=False) for rows in parts])
        found = centroids(features, self.prototypes or problem.classes, self.restarts)
        return choose_by_score(problem, distances(features, found).cpu(), self.order)

    def embedding(self, problem: Problem) -> tuple[Network, Tensor]:
        """The network that tells turns apart, and its vector; from the cache where a run made it before."""
        network = replace(problem.network, classes=TURNS)
        seed = Seed(problem.starts.seed.root) / "ssp"
        starts = replace(problem.starts, network=network, seed=seed, taught=Curriculum())
        recipe = Recipe(
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            schedule="cosine",
            momentum=0.9,
            weight_decay=5e-4,
            augment="",
        )
        experts = Experts(starts, Turned(problem.real), recipe)
        experts.build(1, (self.epochs,))
        return network, experts.snapshot(0, self.epochs)


@dataclass(frozen=True, eq=False)
class Turned:
    """Every real image four times: row 4 i + t is image i, turned by t quarters, with t as its label."""

    real: RealData

    @property
    def digest(self) -> str:
        return f"turned {self.real.digest}"

    def __len__(self) -> int:
        return TURNS * len(self.real)

    def __getitem__(self, index: Tensor) -> Examples:
        images = self.real.at_hand[index // TURNS].images
        turns = (index % TURNS).to(images.device)
        turned = torch.stack([images.rot90(t, (2, 3)) for t in range(TURNS)])
        labels = one_hot(turns, TURNS).to(images.dtype)
        return Examples(turned[turns, torch.arange(len(turns), device=images.device)], labels)


def distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """The cosine distance ``(n,)`` of ``features`` ``(n, f)`` from the nearest of ``prototypes`` ``(p, f)``."""
    return 1 - (normalize(features, dim=1) @ normalize(prototypes, dim=1).T).amax(1)
