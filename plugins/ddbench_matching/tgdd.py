"""TGDD: mean features matched at points along expert trajectories, and images that a later point knows.

Ran, Pu, Liu, Bi & Xiao, "TGDD: Trajectory Guided Dataset Distillation with Balanced Distribution", AAAI 2026.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ddbench import Needs, Problem, SyntheticSet, soft_cross_entropy
from ddbench.train.optimisers import SGD
from ddbench_matching.between import class_by_class
from ddbench_matching.box import Augment, matching_augmentation, pixel_unit
from ddbench_matching.common import (
    Momentum,
    State,
    all_of_class,
    at_most,
    begin,
    not_falling,
    real_images,
    shown_images,
    siamese,
)


@dataclass(frozen=True)
class Tgdd:
    """Match features along the trajectories of experts, stage by stage (Ran et al., AAAI 2026).

        L_c = | mean_{x in T_c} psi_s(A(x)) - mean_{x in S_c} psi_s(A(x)) |^2 + constraint CE(theta_f(A(S_c)), c)

    | paper | here |
    | --- | --- |
    | a stage: snapshot s of an expert's training on real data | s uniform in 0 .. ``epochs``, of one of ``models`` |
    | stage-wise distribution matching | the first term, in the features psi_s of theta_s |
    | stage-wise distribution constraint, by a later snapshot f | the second; f uniform in s .. s + ``interval`` - 1 |
    | the constraint's weight | ``constraint`` |

    Where ``dance`` matches in mixtures of a network's first and last weights, and calibrates by the last, this one
    takes both networks from the way between them, and near to each other. Stages are drawn, one in each iteration, so
    that one set is made for all of them; schedulers such as ``pdd`` divide the set in addition. f ends at ``epochs``.

    Both terms see the same images under one draw of the augmentation: ``batch_real`` real images of a class and its
    decoded synthetic ones, frozen ones included (or a random ``batch_syn`` of them). One optimiser holds all images
    and steps after each class. ``lr_img`` is for pixels in [0, 1] and one stored image of a class, and grows with
    their number in the stage, as the released 0.01 ipc does. Pixels are clamped before every iteration and when they
    are returned (not under ZCA, where ``lr_img`` counts in whitened units).

    What is known: abstract and released code, which this follows line by line. Its README is missing, so that recipes
    are what its parsers say; that the published numbers come of these, and that no image is packed (``factor`` 1), is
    not known.
    """

    name = "tgdd"
    paper = "Ran et al., AAAI 2026"
    paper_url = "https://arxiv.org/abs/2512.02469"
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 200
    models: Annotated[int, Ge(1), "networks trained on the real data"] = 5
    epochs: Annotated[int, Ge(1), "epochs that they are trained for"] = 10
    interval: Annotated[int, Ge(1), "how far apart the networks of both terms may be, and 1: never, in epochs"] = 7
    constraint: Annotated[float, Ge(0), "weight of the later network's loss on the images; 0 leaves it out"] = 1.0
    batch_real: Annotated[int, Ge(1), "real images per class and iteration, as far as there are so many"] = 128
    batch_syn: Annotated[int, Ge(1), "most decoded synthetic images of a class per step"] = 200
    lr_img: Annotated[float, Gt(0), "learning rate of pixels in [0, 1], at 1 image per class"] = 0.01
    momentum: Momentum = 0.5
    augment: Augment = "color_crop_cutout"

    def needs(self, problem: Problem) -> Needs:
        return Needs(self.models, tuple(range(self.epochs + 1)))

    def init(self, problem: Problem) -> State:
        """Real images; under a decoder, packed from several."""
        return begin(problem, "real", self.momentum)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Match and constrain every class at one stage, stepping after each."""
        model, epoch, later = self.stage()
        matched, known = (problem.experts.snapshot(model, e) for e in (epoch, later))
        rate = self.lr_img * problem.ipc * pixel_unit(problem) ** 2
        images, terms = problem.real.preprocessing.clamp(state.images), []
        loss_of = partial(self.loss, known=known, terms=terms)
        state.images, state.momentum, loss = class_by_class(
            problem, matched, images, state.momentum, SGD(self.momentum), rate, loss_of
        )
        matching, constraint = torch.stack(terms).mean(0)
        return state, {"loss": loss, "matching": matching, "constraint": constraint, "epoch": float(epoch)}

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        return not_falling(rows)

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(problem.real.preprocessing.clamp(state.images), state.labels.clone())

    def stage(self) -> tuple[int, int, int]:
        """A model, and the epochs s and f of its snapshots, from torch's generator."""
        model, epoch = int(torch.randint(self.models, ())), int(torch.randint(self.epochs + 1, ()))
        later = int(torch.randint(epoch, min(epoch + self.interval - 1, self.epochs) + 1, ()))
        return model, epoch, later

    def loss(
        self, problem: Problem, matched: Tensor, images: Tensor, label: int, *, known: Tensor, terms: list[Tensor]
    ) -> Tensor:
        """L_c, differentiable by the stored ``images``; both terms, unweighted, join ``terms``."""
        network, dsa = problem.network, matching_augmentation(problem, self.augment)
        shown = at_most(shown_images(problem, images, label), self.batch_syn)
        real, synthetic = siamese(dsa, real_images(problem, label, self.batch_real), shown)
        with torch.no_grad():
            wanted = network.features(matched, real).mean(0)
        distance = (network.features(matched, synthetic).mean(0) - wanted).square().sum()
        error = soft_cross_entropy(network.apply(known, synthetic), all_of_class(label, synthetic, problem.classes))
        terms.append(torch.stack([distance, error]).detach())
        return distance + self.constraint * error
