"""DANCE: mean features matched between a model's beginning and its end, and images that the trained model knows.

Zhang, Li, Lin, Wang, Qian & Ge, "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ddbench import Needs, Problem, Published, SyntheticSet
from ddbench.train.optimisers import SGD
from ddbench_matching.between import LossOf, class_by_class, drawn_models, known_as
from ddbench_matching.box import Augment, matching_augmentation, pixel_unit
from ddbench_matching.common import Momentum, State, at_most, begin, not_falling, real_images, shown_images, siamese


@dataclass(frozen=True)
class Dance:
    """Align distributions within each class, at all ages of a model, and between classes, by its trained end.

        L_c = | mean_{x in T_c} psi(A(x)) - mean_{x in S_c} psi(A(x)) |^2        psi in l theta_0 + (1 - l) theta_T
        C_c = calibration CE(theta_T(A(S_c)), c)

    | paper | here |
    | --- | --- |
    | theta_0, theta_T: a model before and after its training on real data | snapshots 0 and ``epochs`` of ``models`` |
    | l, the middle encoder's share | uniform in 0 .. 1, drawn with the model in every iteration |
    | inner-class view, pseudo long-term distribution alignment | L_c, a step for each class |
    | inter-class view, distribution calibration | C_c, then another step for each class |
    | lambda | ``calibration`` |

    ``batch_real`` real images of a class and its decoded synthetic ones, frozen ones included (or a random
    ``batch_syn`` of them), share one draw of the augmentation. ``lr_img`` is for pixels in [0, 1] and one stored image
    of a class, and grows with their number in the stage, as the released 0.01 ipc does. Pixels are clamped before every
    iteration and when they are returned (not under ZCA, where ``lr_img`` counts in whitened units). As in the
    released code, one optimiser holds all images and steps after each class: momentum also moves those of others.
    """

    name = "dance"
    paper = "Zhang et al., IJCAI 2024"
    paper_url = "https://arxiv.org/abs/2406.01063"
    published = (Published("DANCE", factor=2),)
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 200
    models: Annotated[int, Ge(1), "networks trained on the real data"] = 5
    epochs: Annotated[int, Ge(1), "epochs that they are trained for"] = 10
    calibration: Annotated[float, Ge(0), "weight of the trained network's loss on the images; 0 leaves it out"] = 1.0
    batch_real: Annotated[int, Ge(1), "real images per class and iteration, as far as there are so many"] = 128
    batch_syn: Annotated[int, Ge(1), "most decoded synthetic images of a class per step"] = 200
    lr_img: Annotated[float, Gt(0), "learning rate of pixels in [0, 1], at 1 image per class"] = 0.01
    momentum: Momentum = 0.5
    augment: Augment = "color_crop_cutout"

    def needs(self, problem: Problem) -> Needs:
        return Needs(self.models, (0, self.epochs))

    def init(self, problem: Problem) -> State:
        """Real images; under a decoder, packed from several."""
        return begin(problem, "real", self.momentum)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Match every class in one interpolated network, then calibrate every class, stepping after each."""
        between, trained = drawn_models(problem, self.models, self.epochs)
        state.images = problem.real.preprocessing.clamp(state.images)
        losses = {"matching": self._pass(problem, state, between, self.match)}
        if self.calibration:
            losses["calibration"] = self._pass(problem, state, trained, self.calibrate)
        return state, {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        return not_falling(rows)

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(problem.real.preprocessing.clamp(state.images), state.labels.clone())

    def match(self, problem: Problem, vector: Tensor, images: Tensor, label: int) -> Tensor:
        """L_c in the network ``vector``, differentiable by the stored ``images``."""
        dsa, shown = matching_augmentation(problem, self.augment), self._shown(problem, images, label)
        real, synthetic = siamese(dsa, real_images(problem, label, self.batch_real), shown)
        with torch.no_grad():
            wanted = problem.network.features(vector, real).mean(0)
        return (problem.network.features(vector, synthetic).mean(0) - wanted).square().sum()

    def calibrate(self, problem: Problem, vector: Tensor, images: Tensor, label: int) -> Tensor:
        """C_c in the network ``vector``, differentiable by the stored ``images``."""
        return self.calibration * known_as(problem, vector, self._shown(problem, images, label), label, self.augment)

    def _shown(self, problem: Problem, images: Tensor, label: int) -> Tensor:
        return at_most(shown_images(problem, images, label), self.batch_syn)

    def _pass(self, problem: Problem, state: State, vector: Tensor, loss_of: LossOf) -> Tensor:
        """Descend on the images of each class in turn; the mean loss."""
        rate = self.lr_img * problem.ipc * pixel_unit(problem) ** 2
        state.images, state.momentum, loss = class_by_class(
            problem, vector, state.images, state.momentum, SGD(self.momentum), rate, loss_of
        )
        return loss
