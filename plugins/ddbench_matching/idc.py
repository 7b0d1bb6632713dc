"""IDC: gradients of real and synthetic images, matched in networks that train on real images.

Kim, Kim, Oh, Yun, Song, Jeong, Ha & Song, "Dataset Condensation via Efficient Synthetic-Data Parameterization",
ICML 2022. Its multi-formation is the harness's decoder (``decoder.factor``), which any matcher of pixels may use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.autograd import grad

from ddbench import Network, Problem, Published, Recipe, Student, SyntheticSet, UsageError, fit
from ddbench.train.optimisers import SGD
from ddbench.train.optimisers import State as Moments
from ddbench_matching.box import Augment, matching_augmentation, moved, pixel_unit
from ddbench_matching.clusters import Interval, Rows, Sampling, chosen_rows, clustered_sample
from ddbench_matching.common import (
    Momentum,
    class_gradient,
    drawn_seed,
    not_falling,
    parameters_of,
    real_images,
    rows_of,
    shown_images,
    siamese,
)

IPC = 10  # the images per class that the published learning rates are for


@dataclass
class State:
    """Images ``(n, c, h, w)`` with hard ``labels`` ``(n, k)`` and momentum, and the network ``(p,)`` with its own.

    ``rows`` are the real images of each class that are matched until classes are clustered anew.
    """

    images: Tensor
    labels: Tensor
    momentum: Moments
    vector: Tensor
    net_momentum: Moments
    rows: Rows | None = None


@dataclass(frozen=True)
class Idc:
    """Match the loss gradients of each class in its weights, while the network trains on real images.

    | paper | here |
    | --- | --- |
    | f, multi-formation | ``decoder.factor``; 1 is the paper's IDC-I |
    | D | ``metric``: squared distance, or l1, summed over all matched weights |
    | theta_t | a network from the problem's starts, renewed every ``inner`` iterations |
    | theta_{t+1} | after one pass over ``n_data`` real images, with CutMix |

    An iteration is one of the inner loop: for every class, D(grad of its real batch, grad of its synthetic one) and
    a step of its images, then the network's training. ``steps`` is therefore outer times inner iterations.
    D compares the weights with two dimensions or more, except the classifier's, and neither biases nor norms. Real and
    synthetic images share one draw of the augmentation. The synthetic batch holds the class's decoded images, frozen
    ones included, or a random ``batch_syn`` of them.

    ``lr_img`` is for pixels in [0, 1] and 10 stored images per class, and scales with their number in the stage, as in
    the released code (and in PDD's and SeqMatch's for IDC), whatever earlier stages hold; images are clamped to that
    range whenever the network is renewed, and when they are returned. Under ZCA there is no such range: nothing is
    clamped, and ``lr_img`` counts in whitened units. As in the released code, one optimiser holds all images and steps
    after each class: momentum also moves those of other classes.
    """

    name = "idc"
    version = "2"  # 1 scaled the learning rate of a later stage with the images of all stages so far
    paper = "Kim et al., ICML 2022"
    paper_url = "https://arxiv.org/abs/2205.14959"
    published = (Published("IDC-I"), Published("IDC", factor=2))
    decodes = True
    steps: Annotated[int, Ge(1), "iterations of the inner loop per stage"] = 200
    inner: Annotated[int, Ge(1), "iterations after which the network is renewed"] = 20
    metric: Annotated[Literal["mse", "l1"], "distance of gradients, summed over weights"] = "mse"
    batch_real: Annotated[int, Ge(1), "real images per class and iteration"] = 64
    batch_syn: Annotated[int, Ge(1), "most decoded synthetic images of a class per iteration"] = 128
    lr_img: Annotated[float, Gt(0), "learning rate of pixels in [0, 1], at 10 images per class"] = 0.3
    momentum: Momentum = 0.5
    augment: Augment = "color_crop_cutout"
    n_data: Annotated[int, Ge(0), "real images that the network trains on per iteration"] = 256
    batch_net: Annotated[int, Ge(1), "batch size of the network's training"] = 64
    lr_net: Annotated[float, Gt(0), "learning rate of the network"] = 0.01
    momentum_net: Annotated[float, Ge(0), "momentum of the network"] = 0.9
    decay_net: Annotated[float, Ge(0), "weight decay of the network"] = 5e-4
    mix_probability: Annotated[float, Ge(0), Le(1), "share of the network's batches with CutMix"] = 0.5
    early: Annotated[int, Ge(0), "epochs on real data before a network is first matched in"] = 0
    pix_init: Annotated[
        Literal["real", "k-means"], "where the images start; k-means: at real ones nearest to the centroids of clusters"
    ] = "real"
    sampling: Sampling = "random"
    cluster_every: Interval = 10

    def init(self, problem: Problem) -> State:
        """Real images (under a decoder, packed from several: the paper's "mix") and a first network."""
        examples = clustered_sample(problem) if self.pix_init == "k-means" else problem.sample()
        student = self._fresh(problem)
        images = problem.real.preprocessing.clamp(examples.images)
        momentum = SGD(self.momentum).init(images)
        return State(images, examples.labels, momentum, student.vector, student.state)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Match every class in turn, stepping after each, then train the network or draw the next one."""
        rate = self.lr_img * problem.ipc / IPC * pixel_unit(problem) ** 2
        rule, losses = SGD(self.momentum), []
        state.rows = chosen_rows(self, problem, state.vector, k % self.inner, state.rows)
        for label in range(problem.classes):
            rows = rows_of(problem, label)
            loss, gradient = self.match(problem, state.vector, state.images[rows], label, state.rows)
            state.images, state.momentum = moved(rule, state.images, state.momentum, rows, gradient, rate)
            losses.append(loss)
        if (k + 1) % self.inner:
            student = self._trained(problem, Student(state.vector, state.net_momentum))
        else:
            student = self._fresh(problem)
            state.images = problem.real.preprocessing.clamp(state.images)
        state.vector, state.net_momentum = student.vector, student.state
        return state, {"loss": torch.stack(losses).mean()}

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        return not_falling(rows)

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(problem.real.preprocessing.clamp(state.images), state.labels.clone())

    def match(
        self, problem: Problem, vector: Tensor, images: Tensor, label: int, chosen: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """The distance of one class in the network ``vector`` and its gradient by the stored ``images``."""
        leaf = images.detach().requires_grad_()
        shown = shown_images(problem, leaf, label)
        if len(shown) > self.batch_syn:
            shown = shown[torch.randperm(len(shown))[: self.batch_syn]]
        dsa = matching_augmentation(problem, self.augment)
        real, synthetic = siamese(dsa, real_images(problem, label, self.batch_real, chosen), shown)
        mask = matched_weights(problem.network)
        g_real = class_gradient(problem.network, vector, real, label).detach()
        g_syn = class_gradient(problem.network, vector, synthetic, label, differentiable=True)
        loss = distance(g_real, g_syn, mask.to(g_real), self.metric)
        # the images may all be missing from a sub-sample with many frozen ones
        return loss.detach(), grad(loss, leaf, materialize_grads=True)[0]

    def _fresh(self, problem: Problem) -> Student:
        """A network from the problem's starts, trained on real data for ``early`` epochs."""
        student = Student(problem.starts.draw())
        if self.early:
            recipe = self._recipe(problem, epochs=self.early)
            return fit(problem.network, student, problem.real, recipe, drawn_seed(), what=None)
        rule = SGD(self.momentum_net, self.decay_net)
        return Student(student.vector, rule.init(student.vector[: problem.network.parameters]))

    def _trained(self, problem: Problem, student: Student) -> Student:
        """The network after ``n_data`` real images more, whole batches of them."""
        if not self.n_data:
            return student
        recipe = self._recipe(problem, steps=math.ceil(self.n_data / self.batch_net))
        return fit(problem.network, student, problem.real, recipe, drawn_seed(), what=None)

    def _recipe(self, problem: Problem, *, steps: int | None = None, epochs: int | None = None) -> Recipe:
        """SGD on augmented images, without cutout where CutMix follows."""
        dsa = matching_augmentation(problem, self.augment)
        kept = [name for name in dsa.operations if not (self.mix_probability and name == "cutout")]
        return Recipe(
            steps=steps,
            epochs=epochs,
            batch=self.batch_net,
            lr=self.lr_net,
            momentum=self.momentum_net,
            weight_decay=self.decay_net,
            augment=matching_augmentation(problem, "_".join(kept)).strategy,
            mixing="cutmix" if self.mix_probability else "none",
            mix_probability=self.mix_probability,
        )


@dataclass(frozen=True)
class Dream(Idc):
    """``idc`` on representative real images instead of random ones: those nearest to the centroids of clusters.

    | paper | here |
    | --- | --- |
    | K-means on the features of the matched network, by class | ``sampling="k-means"``, ``batch_real`` clusters |
    | I_int, the interval | ``cluster_every``, in matching steps; clusters are new where the network is, too |
    | initialisation at cluster centres | ``pix_init="k-means"`` |

    With both at ``random`` and ``real`` it is ``idc``, where the other options are explained; ``dc``, ``dsa`` and
    ``dm`` have the same two options. Features are those of unaugmented images as networks see them, normalised; the
    released code gives pixels in [0, 1] to the network there. Under a decoder small images are packed, as its
    ``init=mix`` does, where its default of today stores whole ones.
    """

    name = "dream"
    version = "1"
    paper = "Liu et al., ICCV 2023"
    paper_url = "https://arxiv.org/abs/2302.14416"
    published = (Published("DREAM", factor=2),)
    pix_init: Annotated[
        Literal["real", "k-means"], "where the images start; k-means: at real ones nearest to the centroids of clusters"
    ] = "k-means"
    sampling: Sampling = "k-means"


def matched_weights(network: Network) -> Tensor:
    """Which parameters are matched, ``(p,)`` bool: weights of two dimensions or more, without the classifier.

    The released code leaves out all linear layers; here only the last one with a row for each class, so that a
    transformer has weights to match. For the ConvNet and the ResNets this is the same.
    """
    layers = list(parameters_of(network, torch.empty(network.length)))
    heads = [i for i, layer in enumerate(layers) if layer.ndim == 2 and len(layer) == network.classes]
    skipped = {i for i, layer in enumerate(layers) if layer.ndim == 1} | set(heads[-1:])
    if len(skipped) == len(layers):
        raise UsageError(
            f"network {network.source.name!r} has no weights below its classifier, and idc matches only those; "
            "choose another network, or another matcher (dc, dm)"
        )
    return torch.cat([torch.full((layer.numel(),), i not in skipped) for i, layer in enumerate(layers)])


def distance(real: Tensor, synthetic: Tensor, mask: Tensor, metric: str) -> Tensor:
    """The sum of squared (``mse``) or absolute (``l1``) differences of two gradients ``(p,)`` in the ``mask``."""
    difference = (real - synthetic) * mask
    return difference.square().sum() if metric == "mse" else difference.abs().sum()
