"""IDM: mean features and class predictions, matched in a pool of networks that train on real images.

Zhao, Li, Qin & Yu, "Improved Distribution Matching for Dataset Condensation", CVPR 2023. Its partition and expansion
augmentation is the harness's decoder (``decoder.factor=2``), which any matcher of pixels may use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.autograd import grad

from ddbench import DSA, Memory, Problem, Published, Recipe, Student, SyntheticSet, fit, soft_cross_entropy
from ddbench.train.optimisers import SGD
from ddbench.train.optimisers import State as Moments
from ddbench_matching.box import moved
from ddbench_matching.common import (
    Momentum,
    PixInit,
    all_of_class,
    begin,
    drawn_seed,
    real_images,
    rows_of,
    shown_images,
    siamese,
)

FIRST = 3  # networks in the pool before the first iteration


@dataclass
class Member:
    """A network of the pool: its vector ``(p,)``, its momentum, and its accuracy on real images in percent."""

    vector: Tensor
    momentum: Moments
    accuracy: float = 0.0


@dataclass
class State:
    """Stored images ``(n, c, h, w)`` with hard ``labels`` ``(n, k)`` and momentum, and the pool, oldest first."""

    images: Tensor
    labels: Tensor
    momentum: Moments
    pool: list[Member]


@dataclass(frozen=True)
class Idm:
    """Give each class the mean features of its real images, and its own label, in networks at all ages of training.

        L_c = | mean_{x in T_c} psi(A_c(x)) - mean_{x in S_c} psi(A_c(x)) |^2 + ce_weight a CE(S_c, c)

    | paper | here |
    | --- | --- |
    | partition and expansion augmentation | ``decoder.factor=2`` |
    | model queue, its bound | ``networks``, which train on real images; a new one every ``fresh`` iterations |
    | psi | ``features`` of a network that is drawn from the pool, in evaluation mode |
    | T_c, S_c | ``batch_real`` real images of class c, and all its decoded synthetic ones, frozen ones included |
    | A_c | one draw of DSA for class c, the same for all its images, real and synthetic |
    | a, its weight | the network's accuracy in percent, as released; ``ce_weight`` |

    An iteration draws a network and steps the images of each class in turn; then ``trained`` networks of the pool learn
    ``train_steps`` batches of unaugmented real images each. A network's accuracy is that on a batch of real images
    after it last trained, 0 before. As in the released code, one optimiser holds all images and steps after each
    class: momentum also moves those of other classes. L is a sum over features, so ``lr_img`` depends on the width of
    the network.
    """

    name = "idm"
    paper = "Zhao et al., CVPR 2023"
    paper_url = "https://arxiv.org/abs/2307.09742"
    published = (Published("IDM", factor=2),)
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 300
    networks: Annotated[int, Ge(1), "most networks in the pool; the oldest leaves"] = 20
    fresh: Annotated[int, Ge(1), "iterations after which a new network joins the pool"] = 30
    trained: Annotated[int, Ge(0), "networks that train in an iteration"] = 2
    train_steps: Annotated[int, Ge(1), "optimiser steps that each of them takes"] = 5
    batch_net: Annotated[int, Ge(1), "batch size of the networks' training"] = 64
    lr_net: Annotated[float, Gt(0), "learning rate of the networks"] = 0.01
    momentum_net: Annotated[float, Ge(0), "momentum of the networks"] = 0.9
    decay_net: Annotated[float, Ge(0), "weight decay of the networks"] = 5e-4
    ce_weight: Annotated[float, Ge(0), "weight of the cross entropy, times the network's accuracy in percent"] = 0.5
    batch_real: Annotated[int, Ge(1), "real images per class and iteration, as far as there are so many"] = 256
    lr_img: Annotated[float, Gt(0), "learning rate of the images"] = 0.2
    momentum: Momentum = 0.5
    pix_init: PixInit = "real"
    augment: Annotated[bool, "the same DSA for the real and synthetic images of a class"] = True

    def init(self, problem: Problem) -> State:
        """Real images, under a decoder packed from several, and a pool of untrained networks."""
        start = begin(problem, self.pix_init, self.momentum)
        pool = [self._fresh(problem) for _ in range(min(FIRST, self.networks))]
        return State(start.images, start.labels, start.momentum, pool)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Match every class in one network, stepping after each, then train some networks."""
        if k % self.fresh == 0:
            state.pool = [*state.pool, self._fresh(problem)][-self.networks :]
        chosen = state.pool[int(torch.randint(len(state.pool), ()))]
        rule, losses, matched = SGD(self.momentum), [], []
        for label in range(problem.classes):
            rows = rows_of(problem, label)
            leaf = state.images[rows].detach().requires_grad_()
            matching, calibration = self.match(problem, chosen.vector, leaf, label)
            loss = matching + self.ce_weight * chosen.accuracy * calibration
            state.images, state.momentum = moved(
                rule, state.images, state.momentum, rows, grad(loss, leaf)[0], self.lr_img
            )
            losses.append(loss.detach())
            matched.append(matching.detach())
        for which in torch.randperm(len(state.pool))[: self.trained].tolist():
            state.pool[which] = self._trained(problem, state.pool[which])
        numbers = {"matching": torch.stack(matched).mean(), "accuracy": chosen.accuracy}
        return state, {"loss": torch.stack(losses).mean(), **numbers}

    def passes(self, problem: Problem) -> float:
        """Real images forwards alone, half a pass each; synthetic ones twice, for features and for logits."""
        frozen = sum(len(s) * s.decoder.copies for s in problem.frozen.sets)
        shown = problem.classes * problem.shown + frozen
        training = self.trained * self.batch_net * (self.train_steps + 0.5)
        return 0.5 * problem.classes * self.batch_real + 2 * shown + training

    def memory(self, problem: Problem) -> Memory:
        """The set with its momentum, and the pool: a vector and a momentum for each network, in float32."""
        network = problem.network
        return Memory(problem.state_bytes() + 4 * self.networks * (network.length + network.parameters))

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(state.images.clone(), state.labels.clone())

    def match(self, problem: Problem, vector: Tensor, images: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """The two losses of one class in the network ``vector``, differentiable by the stored ``images``.

        The squared distance of mean features, and the mean cross entropy of what students see.
        """
        dsa, network = problem.dsa if self.augment else DSA(), problem.network
        real = real_images(problem, label, self.batch_real)
        real, synthetic = siamese(dsa, real, shown_images(problem, images, label))
        with torch.no_grad():
            wanted = network.features(vector, real, train=False).mean(0)
        matching = (network.features(vector, synthetic, train=False).mean(0) - wanted).square().sum()
        logits = network.apply(vector, synthetic, train=False)
        return matching, soft_cross_entropy(logits, all_of_class(label, synthetic, problem.classes))

    def _fresh(self, problem: Problem) -> Member:
        vector = problem.starts.draw()
        rule = SGD(self.momentum_net, self.decay_net)
        return Member(vector, rule.init(vector[: problem.network.parameters]))

    def _trained(self, problem: Problem, member: Member) -> Member:
        """A network after ``train_steps`` batches of real images more, and its accuracy on another one."""
        recipe = Recipe(
            steps=self.train_steps,
            batch=self.batch_net,
            lr=self.lr_net,
            momentum=self.momentum_net,
            weight_decay=self.decay_net,
            augment="",
        )
        student = Student(member.vector, member.momentum)
        student = fit(problem.network, student, problem.real, recipe, drawn_seed(), what=None)
        batch = problem.real.at_hand[torch.randperm(len(problem.real))[: self.batch_net]]
        with torch.no_grad():
            logits = problem.network.apply(student.vector, batch.images, train=False)
        right = (logits.argmax(1) == batch.labels.argmax(1)).double().mean()
        return Member(student.vector, student.state, 100 * float(right))
