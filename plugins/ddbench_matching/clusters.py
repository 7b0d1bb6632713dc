"""DREAM's choice of real images: those nearest to the centroids of a class's clusters, in the network at hand.

Liu, Gu, Wang, Zhu, Jiang & You, "DREAM: Efficient Dataset Distillation by Representative Matching", ICCV 2023.

Random batches of a class leave out parts of it and hold others twice. DREAM divides the class into as many clusters as
the batch has images, by k-means on the features of the network that is matched in, and takes the image nearest to each
centroid; every few matching steps anew, while the network moves on. Any method that takes real images class by class
may do so: ``sampling="k-means"`` of dc, dsa, dm and idc. Images may start there, too: ``pix_init="k-means"``.

Shapes: m images of a class, f features, c clusters.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge
from torch import Tensor

from ddbench import Examples, Problem, UsageError

AT_ONCE = 256  # images per forward pass
MOST = 100  # iterations of Lloyd's algorithm

Sampling = Annotated[
    Literal["random", "k-means"],
    "real images of a class: random ones, or those nearest to the centroids of its clusters",
]
Interval = Annotated[int, Ge(1), "matching steps after which classes are clustered anew (sampling=k-means)"]
Rows = list[Tensor]  # for each class, rows of problem.real


class Sampled(Protocol):
    """The options that say which real images are matched."""

    @property
    def sampling(self) -> Literal["random", "k-means"]: ...
    @property
    def cluster_every(self) -> int: ...
    @property
    def batch_real(self) -> int: ...


def chosen_rows(method: Sampled, problem: Problem, vector: Tensor, t: int, before: Rows | None) -> Rows | None:
    """The real images of each class at matching step ``t``: those ``before``, or new ones of the network ``vector``.

    None where every step draws its own at random.
    """
    if method.sampling == "random":
        return None
    if before is not None and t % method.cluster_every:
        return before
    return [representatives(problem, vector, label, method.batch_real) for label in range(problem.classes)]


def representatives(problem: Problem, vector: Tensor, label: int, count: int) -> Tensor:
    """The ``count`` rows of a class nearest to centroids, by the features of the network ``vector``.

    An image that is nearest to several centroids is there as often, as in the released code. All rows where the class
    has no more.
    """
    members = problem.real.members[label]
    if len(members) <= count:
        return members
    features = features_of(problem, vector, problem.real[members].images)
    return members[torch.cdist(centroids(features, count), features).argmin(1).cpu()]


def clustered_sample(problem: Problem) -> Examples:
    """Stored images that start from the real ones nearest to centroids, in a network from the problem's starts.

    A class is divided into as many clusters as it has images in all stages so far; each frozen image closes the
    centroid nearest to it that is open, and the open ones take one image each, the nearest that is still free: that no
    other took, nor is nearest to a frozen image, which it may have begun as.
    """
    vector, found = problem.starts.draw(), []
    gone = sum(len(s) * s.decoder.copies for s in problem.frozen.sets) // problem.classes
    for label, members in enumerate(problem.real.members):
        if gone + problem.shown > len(members):
            raise UsageError(
                f"{gone + problem.shown} real images per class to start from, but class {label} has {len(members)}; "
                "choose a smaller --ipc"
            )
        features = features_of(problem, vector, problem.real[members].images)
        places, frozen = centroids(features, gone + problem.shown), problem.frozen.of_class(label, problem.classes)
        distances = torch.cdist(places, features)
        if frozen is not None:
            held = features_of(problem, vector, frozen)
            distances[:, one_each(torch.cdist(held, features))] = torch.inf
            closed = one_each(torch.cdist(held, places))
            distances = distances[~torch.isin(torch.arange(len(places), device=places.device), closed)]
        found.append(members[one_each(distances).cpu()])
    return problem.pack(torch.cat(found))


@torch.no_grad()
def features_of(problem: Problem, vector: Tensor, images: Tensor) -> Tensor:
    """The features ``(m, f)`` of images ``(m, c, h, w)``, not augmented, in evaluation mode."""
    return torch.cat([problem.network.features(vector, part, train=False) for part in images.split(AT_ONCE)])


def centroids(features: Tensor, count: int) -> Tensor:
    """``(count, f)`` by Lloyd's algorithm on ``features`` ``(m, f)``, from ``count`` of them at random.

    On the device of the features, where a clustering of a class of CIFAR-10 takes milliseconds on a GPU. A cluster
    that loses all its images stays where it was.
    """
    places = features[torch.randperm(len(features))[:count].to(features.device)]
    nearest = None
    for _ in range(MOST):
        now = torch.cdist(features, places).argmin(1)
        if nearest is not None and torch.equal(now, nearest):
            break
        nearest = now
        members = torch.nn.functional.one_hot(nearest, count).T.to(features)  # (c, m): sums in a fixed order on a GPU
        sizes = members.sum(1, keepdim=True)
        places = torch.where(sizes > 0, members @ features / sizes.clamp_min(1), places)
    return places


def one_each(distances: Tensor) -> Tensor:
    """For each row of ``distances`` ``(a, b)``, in order, the nearest column that no earlier row has, ``(a,)``."""
    left, taken = distances.clone(), []
    for row in left:
        taken.append(int(row.argmin()))
        left[:, taken[-1]] = torch.inf
    return torch.tensor(taken, dtype=torch.int64, device=distances.device)
