"""What the methods share: images with momentum, batches of a class, gradients and distances of gradients.

Shapes: n images, k classes, c x h x w pixels, p numbers of a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.autograd import grad

from ddbench import DSA, Network, Problem, Seed, SyntheticSet, soft_cross_entropy
from ddbench.data.augment import Draw
from ddbench.train.optimisers import SGD
from ddbench.train.optimisers import State as Moments
from ddbench_matching.clusters import Rows, clustered_sample

EPS = 1e-6  # in the denominator of cosines, as in the released code of DC
LOSSES = 5  # that a mean is taken of, at least
RISEN = 1.1  # a loss this many times the first one has risen, whatever the noise of networks and batches
Metric = Literal["ours", "mse", "cos"]
Momentum = Annotated[float, Ge(0), "momentum of the images"]
PixInit = Annotated[
    Literal["real", "noise", "k-means"],
    "where the images start; k-means: at real ones nearest to the centroids of clusters",
]


@dataclass
class State:
    """Stored images ``(n, c, h, w)``, class by class, with hard ``labels`` ``(n, k)`` and the images' momentum.

    ``rows`` are the real images of each class that are matched until classes are clustered anew.
    """

    images: Tensor
    labels: Tensor
    momentum: Moments
    rows: Rows | None = None


def begin(problem: Problem, pix_init: str, momentum: float) -> State:
    """Real images that no earlier stage drew, random ones or representative ones, or standard normal ``noise``."""
    examples = clustered_sample(problem) if pix_init == "k-means" else problem.sample()
    images = torch.randn_like(examples.images) if pix_init == "noise" else examples.images
    return State(images, examples.labels, SGD(momentum).init(images))


def descend(state: State, gradient: Tensor, lr: float, momentum: float) -> None:
    """One step of SGD on all images at once."""
    state.images, state.momentum = SGD(momentum).update(state.images, state.momentum, gradient, lr)


def finish(state: State) -> SyntheticSet:
    return SyntheticSet(state.images.clone(), state.labels.clone())


def not_falling(rows: Sequence[Mapping[str, float]]) -> str | None:
    """What is wrong where the loss has not come down since a stage began; None where it has.

    The loss of these methods has no scale of its own, and comes of a network that is drawn anew, so the mean of the
    last quarter of the iterations is compared with that of the first.
    """
    losses = [row["loss"] for row in rows if "loss" in row]
    quarter = len(losses) // 4
    if quarter < LOSSES:
        return None
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    if last <= RISEN * first:
        return None
    return (
        f"the loss has risen in {len(losses)} iterations, from {first:.4g} to {last:.4g}: images move too far; try a "
        "tenth of -o matcher.lr_img"
    )


def drawn_seed() -> Seed:
    return Seed(int(torch.randint(2**62, ())))


def real_images(problem: Problem, label: int, count: int, chosen: Rows | None = None) -> Tensor:
    """``count`` random real images of a class, or all of them if there are fewer; those ``chosen``, if any were."""
    return problem.real[real_rows(problem, label, count, chosen)].images


def real_rows(problem: Problem, label: int, count: int, chosen: Rows | None = None) -> Tensor:
    """Where ``count`` random real images of a class are, or all of them if there are fewer; or those ``chosen``."""
    if chosen is not None:
        return chosen[label]
    members = problem.real.members[label]
    return members[torch.randperm(len(members))[:count]]


def rows_of(problem: Problem, label: int) -> slice:
    """Where the stored images of a class are."""
    return slice(label * problem.ipc, (label + 1) * problem.ipc)


def shown_images(problem: Problem, images: Tensor, label: int) -> Tensor:
    """What students see of a class: its frozen images, and its stored ``images`` decoded."""
    frozen, decoded = problem.frozen.of_class(label, problem.classes), problem.decoder(images)
    return decoded if frozen is None else torch.cat([frozen, decoded])


def at_most(images: Tensor, count: int) -> Tensor:
    """A random ``count`` of the ``images``, or all of them if there are no more."""
    return images if len(images) <= count else images[torch.randperm(len(images))[:count]]


def per_class(problem: Problem) -> int:
    """Stored images per class of the whole set, frozen ones included."""
    return problem.ipc + sum(len(s) for s in problem.frozen.sets) // problem.classes


def siamese(dsa: DSA, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches under one draw: one operation, with the same parameters for every image."""
    draw = dsa.draw(1, siamese=True)
    return draw(real), draw(synthetic)


def augmented(batches: Sequence[Tensor], draws: Sequence[Draw]) -> list[Tensor]:
    """Each batch under its own siamese draw, with one call for all that drew the same operation.

    The same numbers as one call for each batch, in as many kernels as there are operations, not classes.
    """
    found: dict[int, Tensor] = {}
    for operation in dict.fromkeys(draw.operation for draw in draws):
        which = [i for i, draw in enumerate(draws) if draw.operation == operation]
        sizes = [len(batches[i]) for i in which]
        rows = [
            draws[i].parameters.expand(size, -1) for i, size in zip(which, sizes, strict=True) if operation != "none"
        ]
        together = Draw(operation, torch.cat(rows) if rows else torch.empty(0))(torch.cat([batches[i] for i in which]))
        found |= dict(zip(which, together.split(sizes), strict=True))
    return [found[i] for i in range(len(batches))]


def all_of_class(label: int, images: Tensor, classes: int) -> Tensor:
    """One-hot labels ``(n, k)`` for ``images`` of one class."""
    labels = torch.zeros(len(images), classes, dtype=images.dtype, device=images.device)
    labels[:, label] = 1
    return labels


def class_gradient(
    network: Network, vector: Tensor, images: Tensor, label: int, *, train: bool = True, differentiable: bool = False
) -> Tensor:
    """The gradient ``(p,)`` by the parameters of the mean cross entropy of ``images``, all of class ``label``.

    Batch norm uses their statistics, or without ``train`` those in ``vector``.
    """
    theta, buffers = vector.detach().split([network.parameters, network.length - network.parameters])
    theta = theta.requires_grad_()
    logits = network.apply(torch.cat([theta, buffers]), images, train=train)
    loss = soft_cross_entropy(logits, all_of_class(label, images, network.classes))
    return grad(loss, theta, create_graph=differentiable)[0]


def distance(network: Network, real: Tensor, synthetic: Tensor, metric: Metric) -> Tensor:
    """How far the gradient ``synthetic`` ``(p,)`` is from ``real`` ``(p,)``, differentiable by both.

    | metric | |
    | --- | --- |
    | ``ours`` | DC's own: 1 - cosine for each output channel, summed over channels and layers |
    | ``mse`` | the squared distance |
    | ``cos`` | 1 - cosine of the whole vectors |

    ``ours`` passes over tensors of one dimension, biases and the scales of norms; the other two count them.
    """
    real, synthetic = real[: network.parameters], synthetic[: network.parameters]
    if metric == "mse":
        return (real - synthetic).square().sum()
    if metric == "cos":
        return _one_minus_cosine(real, synthetic)
    pairs = zip(_weights(network, real), _weights(network, synthetic), strict=True)
    return torch.stack([_one_minus_cosine(a, b).sum() for a, b in pairs]).sum()


def parameters_of(network: Network, vector: Tensor) -> Iterator[Tensor]:
    """The parameters in a whole ``vector``, each in its shape."""
    seen = 0
    for layer in network.layers(vector).values():
        if seen == network.parameters:
            return  # buffers follow
        yield layer
        seen += layer.numel()


def _weights(network: Network, gradient: Tensor) -> Iterator[Tensor]:
    """The gradients of weights of two dimensions or more, each as (output channels, rest)."""
    padding = gradient.new_zeros(network.length - network.parameters)
    layers = parameters_of(network, torch.cat([gradient, padding]))
    return (layer.flatten(1) for layer in layers if layer.ndim > 1)


def _one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Over the last dimension. A zero gradient, that of a dead channel, is at distance 1 from all others."""
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + EPS)
