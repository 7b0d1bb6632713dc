"""FRePo: images on which ridge regression with a network's features predicts real data.

Zhou, Nezhadarya & Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.autograd import grad

from ddbench import DivergedError, Problem, Published, SyntheticSet, squared_error
from ddbench.train.optimisers import Adam, Lamb
from ddbench.train.optimisers import State as Moments
from ddbench_meta.common import real_batch

ONLINE = Adam()
OUTER = Lamb()
FINAL = 0.1  # the share of the learning rate that cosine decay ends at


@dataclass
class State:
    """Learned images ``(n, c, h, w)`` and labels ``(n, k)`` with LAMB's moments, and the pool of m online networks.

    ``vectors`` ``(m, p)`` are the networks with their buffers; ``first``, ``second`` and ``updates`` ``(m,)`` are the
    moments and the step count of each one's Adam. ``ages`` ``(m,)`` count towards a new initialisation.
    """

    images: Tensor
    labels: Tensor
    images_moments: Moments
    labels_moments: Moments
    vectors: Tensor
    first: Tensor
    second: Tensor
    updates: Tensor
    ages: list[int]


@dataclass(frozen=True)
class Frepo:
    """The loss on real images of a readout that is solved for, not trained, on the features of online networks.

    | paper | here |
    | --- | --- |
    | X_s, y_s | the images and labels of this stage, after the frozen ones, which do not move |
    | f_theta | ``features`` of one of ``networks`` online networks, in evaluation mode |
    | K_ts (K_ss + lambda I)^-1 y_s | the prediction for a batch of real images; lambda = ``ridge`` tr(K_ss) / n |
    | m, K | ``networks``, ``max_online``: the pool, and the updates after which a network is drawn anew |
    | alpha, beta | ``lr_img`` and ``lr_label`` of LAMB on each tensor, with cosine decay; ``lr_net`` of Adam |

    An iteration picks a network, takes one step of images and labels against the squared error on real images (targets
    one-hot - 1/k) plus the label regulariser, -mean(min(margin of the two largest labels, 1/k)), and trains the
    network one step by squared error on the new set, frozen images included.

    The kernel is formed and factorised (Cholesky) in float64, whatever the network's precision: with a ridge of
    1e-6 its condition number is beyond float32, and no TF32 enters. The features are as precise as the network.

    The published method brings its own network, three times as wide at its end and with a batch norm that its students
    leave out. This is the method on the run's network, of which any with ``features`` will do. Batch norm is used as in
    the released code: features by running statistics, which the online steps move.

    Labels are real-valued, and students learn them by squared error. No student lr is recommended: the released
    evaluation uses Adam.
    """

    name = "frepo"
    paper = "Zhou, Nezhadarya & Ba, NeurIPS 2022"
    paper_url = "https://arxiv.org/abs/2206.00719"
    published = (Published("FRePo"),)
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 500
    networks: Annotated[int, Ge(1), "online networks, m"] = 10
    max_online: Annotated[int, Ge(1), "steps of an online network before it is drawn anew, K"] = 100
    batch_real: Annotated[int, Ge(1), "real images per iteration"] = 256
    batch_syn: Annotated[int | None, Ge(1), "synthetic images per online step; none for all"] = 500
    lr_img: Annotated[float, Gt(0), "learning rate of the images, relative to their norm"] = 0.01
    lr_label: Annotated[float, Ge(0), "learning rate of the labels, relative to their norm"] = 0.01
    lr_net: Annotated[float, Gt(0), "learning rate of the online networks"] = 1e-3
    ridge: Annotated[float, Gt(0), "regularisation of the kernel, relative to its mean eigenvalue"] = 1e-6
    flip: Annotated[bool, "regress on mirrored images as well (not for digits)"] = False
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"

    def init(self, problem: Problem) -> State:
        """Real images (or noise) with centred labels, and networks whose ages are spread over 0 .. ``max_online``."""
        examples = problem.sample()
        classes = examples.labels.shape[1]
        images = torch.randn_like(examples.images) if self.pix_init == "noise" else examples.images
        labels = (examples.labels - 1 / classes) / math.sqrt(classes / 10)
        vectors = torch.stack([problem.starts.draw() for _ in range(self.networks)])
        moments = torch.zeros_like(vectors[:, : problem.network.parameters])
        ages = [i * (self.max_online // self.networks) for i in range(self.networks)]
        updates = torch.zeros(self.networks, dtype=vectors.dtype, device=vectors.device)
        return State(
            images, labels, OUTER.init(images), OUTER.init(labels), vectors, moments.clone(), moments, updates, ages
        )

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """One step of images and labels on the features of a random online network, and one step of that network."""
        chosen = int(torch.randint(self.networks, ()))
        real = real_batch(problem, self.batch_real)
        images, labels = state.images.detach().requires_grad_(), state.labels.detach().requires_grad_()
        predicted = self.predict(problem, state.vectors[chosen], images, labels, real.images)
        error = squared_error(predicted, real.labels - 1 / problem.classes)
        margin = label_margin(labels)
        g_images, g_labels = grad(error - margin, [images, labels])
        decay = FINAL + (1 - FINAL) * (1 + math.cos(math.pi * k / self.steps)) / 2
        with torch.no_grad():
            state.images, state.images_moments = OUTER.update(
                state.images, state.images_moments, g_images, self.lr_img * decay
            )
            state.labels, state.labels_moments = OUTER.update(
                state.labels, state.labels_moments, g_labels, self.lr_label * decay
            )
        self._train(problem, state, chosen)
        return state, {"loss": error.detach(), "margin": margin.detach()}

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(state.images.clone(), state.labels.clone(), None, "real", "learned")

    def predict(self, problem: Problem, vector: Tensor, images: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        """Ridge regression's prediction ``(b, k)`` for ``real`` ``(b, c, h, w)`` from stored images and labels.

        Differentiable by ``images`` and ``labels``; frozen images are rows of the kernel like the others.
        """

        def features(x: Tensor) -> Tensor:
            return problem.network.features(vector, x, train=False).double()

        parts, told = [problem.decoder(images)], [problem.decoder.labels(labels)]
        frozen = problem.frozen.frozen_examples
        if frozen is not None:
            parts, told = [frozen.images, *parts], [frozen.labels, *told]
        if self.flip:
            parts, told = [*parts, *(x.flip(3) for x in parts)], [*told, *told]
        embedded = torch.cat([features(x) for x in parts])
        with torch.no_grad():
            targets = features(real)
        return targets @ readout(embedded, torch.cat(told).double(), self.ridge)

    def _train(self, problem: Problem, state: State, chosen: int) -> None:
        """One step of network ``chosen`` on the set as it is now, or a new initialisation when its time is up."""
        p = problem.network.parameters
        if state.ages[chosen] >= self.max_online:
            state.vectors[chosen] = problem.starts.draw()
            state.first[chosen], state.second[chosen], state.updates[chosen] = 0, 0, 0
            state.ages[chosen] = 0
            return
        pool = problem.frozen.pool(problem.decoder(state.images), problem.decoder.labels(state.labels))
        batch = pool[torch.randperm(len(pool))[: self.batch_syn]]
        theta, buffers = state.vectors[chosen].split([p, problem.network.length - p])
        leaf = theta.detach().clone().requires_grad_()
        outputs, buffers = problem.network.apply_with_buffers(torch.cat([leaf, buffers]), batch.images)
        g = grad(squared_error(outputs, batch.labels), leaf)[0]
        moments = state.first[chosen], state.second[chosen], state.updates[chosen]
        with torch.no_grad():
            theta, moments = ONLINE.update(leaf, moments, g, self.lr_net)
        state.vectors[chosen] = torch.cat([theta, buffers])
        state.first[chosen], state.second[chosen], state.updates[chosen] = moments
        state.ages[chosen] += 1


def label_margin(labels: Tensor) -> Tensor:
    """The mean over rows of how far the largest label is ahead of the second, counted up to 1/k."""
    best = labels.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).clamp_max(1 / labels.shape[1]).mean()


def readout(features: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """F^T (F F^T + lambda I)^-1 y ``(f, k)`` for features F ``(n, f)`` and labels y ``(n, k)``.

    With the features of other images in front it is K_ts (K_ss + lambda I)^-1 y, without their kernel in memory.
    """
    kernel = features @ features.T
    kernel = kernel + ridge * kernel.trace() / len(kernel) * torch.eye(len(kernel)).to(kernel)
    factor, failed = torch.linalg.cholesky_ex(kernel)
    if failed:
        raise DivergedError(
            "the kernel of the synthetic images cannot be factorised, since their features are zero or not finite; "
            "try a smaller matcher.lr_img or matcher.lr_net, or a larger matcher.ridge"
        )
    return features.T @ torch.cholesky_solve(labels, factor)
