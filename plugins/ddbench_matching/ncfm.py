"""NCFM: the characteristic functions of real and synthetic features, matched at random frequencies.

Wang, Yang, Liu, Sun, Hu, He & Zhang, "Dataset Distillation with Neural Characteristic Function: A Minmax
Perspective", CVPR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import normalize

from ddbench import Needs, Problem, SyntheticSet
from ddbench.train.optimisers import SGD, Adam, Optimiser
from ddbench.train.optimisers import State as Moments
from ddbench_matching.between import LossOf, class_by_class, drawn_models, known_as
from ddbench_matching.box import Augment, matching_augmentation, pixel_unit
from ddbench_matching.common import not_falling, real_images, shown_images, siamese

SCALE = 300.0  # of the discrepancy beside the calibration loss, as in the released code
EPS = 1e-12  # under square roots, whose derivative at zero is infinite
LESS = 1e-4  # a loss must be lower by this share to count as a new lowest one (torch's ReduceLROnPlateau)


@dataclass
class State:
    """Images ``(n, c, h, w)`` with hard ``labels`` ``(n, k)``, their moments, and where the learning rate stands.

    ``share`` of ``lr_img`` is left after ``waited`` iterations without a loss below ``lowest``.
    """

    images: Tensor
    labels: Tensor
    moments: Moments
    share: float = 1.0
    lowest: float = float("inf")
    waited: int = 0


@dataclass(frozen=True)
class Ncfm:
    """Match the distribution of features by its characteristic function phi(t) = E exp(i <t, f>).

    | paper | here |
    | --- | --- |
    | t | ``frequencies`` standard normal vectors, drawn for every class and iteration |
    | f | features of length 1, in a random mixture of a model's initial and trained weights |
    | amplitude, phase | (abs phi_x - abs phi_y)^2 and 2 abs phi_x abs phi_y (1 - cos(a_x - a_y)), with angles a |
    | alpha, beta | ``alpha``, ``beta``: their weights under a square root, of which the mean over t is the loss |

    An iteration draws one of ``models``, steps each class's images against the discrepancy (times 300, as released),
    and then against the cross entropy of the trained model on them, times ``calibration``. Real and
    synthetic images share one draw of the augmentation; frozen images join those of their class.

    The minmax of the title, a network that samples frequencies where the discrepancy is largest, is switched off in
    all released settings and is left out here; so is the weight decay of AdamW, which pulls pixels to black by 5e-6
    a step. ``lr_img`` is for pixels in [0, 1], to which images are clamped before every iteration and when they are
    returned (not under ZCA, where ``lr_img`` counts in whitened units). As in the released code, one optimiser holds
    all images and steps after each class: its moments also move those of other classes. The released settings have
    ``outer=sgd`` for CIFAR-100 at 10 images per class only.
    """

    name = "ncfm"
    paper = "Wang et al., CVPR 2025"
    paper_url = "https://arxiv.org/abs/2502.20653"
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 200
    models: Annotated[int, Ge(1), "networks trained on the real data"] = 10
    epochs: Annotated[int, Ge(1), "epochs that they are trained for"] = 10
    frequencies: Annotated[int, Ge(1), "random frequencies per class and iteration"] = 256
    alpha: Annotated[float, Ge(0), "weight of the amplitudes"] = 0.5
    beta: Annotated[float, Ge(0), "weight of the phases"] = 0.5
    calibration: Annotated[float, Ge(0), "weight of the trained network's loss on the images; 0 leaves it out"] = 1.0
    batch_real: Annotated[int, Ge(1), "real images per class and iteration, as far as there are so many"] = 256
    lr_img: Annotated[float, Gt(0), "learning rate of pixels in [0, 1]"] = 0.002
    outer: Annotated[Literal["adam", "sgd"], "optimiser of the images"] = "adam"
    momentum: Annotated[float, Ge(0), "momentum of outer=sgd"] = 0.5
    patience: Annotated[int | None, Ge(1), "halve lr_img after so many iterations without a lower loss"] = 500
    augment: Augment = "color_crop_cutout"

    def needs(self, problem: Problem) -> Needs:
        return Needs(self.models, (0, self.epochs))

    def init(self, problem: Problem) -> State:
        """Real images; under a decoder, packed from several."""
        examples = problem.sample()
        return State(examples.images, examples.labels, self._rule.init(examples.images))

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Match every class in one interpolated network, then calibrate every class, stepping after each."""
        between, trained = drawn_models(problem, self.models, self.epochs)
        state.images = problem.real.preprocessing.clamp(state.images)
        losses = {"matching": self._pass(problem, state, between, self.match)}
        if self.calibration:
            losses["calibration"] = self._pass(problem, state, trained, self.calibrate)
        total = torch.stack(list(losses.values())).sum()
        self._wait(state, total)
        return state, {"loss": total, **losses}

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        return not_falling(rows)

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(problem.real.preprocessing.clamp(state.images), state.labels.clone())

    def match(self, problem: Problem, vector: Tensor, images: Tensor, label: int) -> Tensor:
        """The discrepancy of one class in the network ``vector``, differentiable by the stored ``images``."""
        dsa = matching_augmentation(problem, self.augment)
        real, synthetic = siamese(
            dsa, real_images(problem, label, self.batch_real), shown_images(problem, images, label)
        )
        with torch.no_grad():
            f_real = normalize(problem.network.features(vector, real))
        f_syn = normalize(problem.network.features(vector, synthetic))
        t = torch.randn(self.frequencies, f_syn.shape[1], dtype=f_syn.dtype, device=f_syn.device)
        return SCALE * discrepancy(f_real, f_syn, t, self.alpha, self.beta)

    def calibrate(self, problem: Problem, vector: Tensor, images: Tensor, label: int) -> Tensor:
        """The weighted cross entropy of one class's images in the network ``vector``."""
        return self.calibration * known_as(problem, vector, shown_images(problem, images, label), label, self.augment)

    @property
    def _rule(self) -> Optimiser:
        return Adam() if self.outer == "adam" else SGD(self.momentum)

    def _pass(self, problem: Problem, state: State, vector: Tensor, loss_of: LossOf) -> Tensor:
        """Descend on the images of each class in turn; the mean loss."""
        unit = pixel_unit(problem)
        rate = state.share * self.lr_img * (unit if self.outer == "adam" else unit**2)
        state.images, state.moments, loss = class_by_class(
            problem, vector, state.images, state.moments, self._rule, rate, loss_of
        )
        return loss

    def _wait(self, state: State, loss: Tensor) -> None:
        """Halve the learning rate after ``patience`` iterations without a new lowest loss."""
        if self.patience is None:
            return
        now = float(loss)
        if now < state.lowest * (1 - LESS):
            state.lowest, state.waited = now, 0
        else:
            state.waited += 1
        if state.waited > self.patience:
            state.share, state.waited = state.share / 2, 0


def discrepancy(x: Tensor, y: Tensor, t: Tensor, alpha: float, beta: float) -> Tensor:
    """Mean over frequencies ``t`` ``(f, d)`` of sqrt(alpha amplitude + beta phase), for samples ``(n, d)``, ``(m, d)``.

    |phi_x - phi_y|^2 = (|phi_x| - |phi_y|)^2 + 2 |phi_x| |phi_y| (1 - cos(a_x - a_y)): amplitude and phase add up to
    the squared distance of the two complex numbers. So alpha amplitude + beta phase is computed as
    beta |phi_x - phi_y|^2 + (alpha - beta) amplitude, in which nothing cancels when the samples are alike; the phase
    as released is a difference of nearly equal numbers.
    """
    (x_real, x_imaginary), (y_real, y_imaginary) = _characteristic(x, t), _characteristic(y, t)
    square = beta * ((x_real - y_real).square() + (x_imaginary - y_imaginary).square())
    if alpha != beta:
        amplitudes = [
            (a.square() + b.square()).clamp_min(EPS).sqrt() for a, b in ((x_real, x_imaginary), (y_real, y_imaginary))
        ]
        square = square + (alpha - beta) * (amplitudes[0] - amplitudes[1]).square()
    return square.clamp_min(EPS).sqrt().mean()


def _characteristic(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part ``(f,)`` of the mean of exp(i <t, x>) over samples ``(n, d)``."""
    angles = x @ t.T
    return angles.cos().mean(0), angles.sin().mean(0)
