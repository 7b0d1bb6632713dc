"""k-means: one image for each cluster of a class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ddbench import Published
from ddbench_coresets.features import ByFeatures


@dataclass(frozen=True)
class KMeans(ByFeatures):
    """The image nearest to each centroid of its class's features, as in DC-BENCH (Cui et al., NeurIPS 2022).

    Every class is divided into as many clusters as it is to have images. In a later stage these are all images so
    far: the ones already there each close the centroid nearest to them, and the open centroids get new images. An
    image that is nearest to two centroids goes to the nearer one; no image is taken twice.
    """

    name = "k-means"
    paper = "Cui et al., NeurIPS 2022"
    paper_url = "https://arxiv.org/abs/2207.09639"
    published = (Published("Kmeans-emb", "hard"),)
    restarts: Annotated[int, Ge(1), "clusterings from other first centroids, of which the tightest counts"] = 3

    def pick(self, features: Tensor, taken: Tensor, count: int) -> Tensor:
        return k_means(features, taken, count, self.restarts)


def k_means(features: Tensor, taken: Tensor, count: int, restarts: int = 1) -> Tensor:
    """``count`` rows of ``features`` ``(m, f)``, none of them in ``taken``: the nearest to centroids not yet closed."""
    distances = torch.cdist(centroids(features, len(taken) + count, restarts), features)
    closed = torch.tensor([c for c, _ in pairs(distances[:, taken])], dtype=torch.int64)
    keep = torch.ones(len(distances), dtype=torch.bool)
    keep[closed] = False
    distances[:, taken] = torch.inf
    return torch.tensor([row for _, row in pairs(distances[keep.to(distances.device)])], dtype=torch.int64)


def centroids(features: Tensor, clusters: int, restarts: int) -> Tensor:
    """``(clusters, f)``, from scikit-learn, whose draws are seeded from torch's generator."""
    from sklearn.cluster import KMeans as Lloyd
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(2**31 - 1, ()))
    with warnings.catch_warnings():  # images that are alike can leave fewer distinct clusters than asked for
        warnings.simplefilter("ignore", ConvergenceWarning)
        lloyd = Lloyd(clusters, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
        found = lloyd.fit(features.cpu().numpy())
    return torch.as_tensor(found.cluster_centers_).to(features)


def pairs(distances: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of ``(a, b)`` paired off, the nearest two first; min(a, b) pairs, in the order of the rows."""
    rows, columns = distances.shape
    made: dict[int, int] = {}
    used: set[int] = set()
    for place in distances.flatten().argsort(stable=True).tolist():
        row, column = divmod(place, columns)
        if row not in made and column not in used:
            made[row] = column
            used.add(column)
            if len(made) == min(rows, columns):
                break
    return sorted(made.items())
