"""SRe2L: images that a teacher classifies rightly and whose batch-norm statistics are those of its training.

Yin, Xing & Shen, "Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective",
NeurIPS 2023. Shapes: n images, b images of a batch, c channels, h x w pixels, k classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.autograd import grad

from ddbench import Needs, Problem, Published, SyntheticSet, Teacher, soft_cross_entropy
from ddbench.train.optimisers import Adam
from ddbench.train.optimisers import State as Moments
from ddbench_decoupled import curriculum as curricula
from ddbench_decoupled import teachers
from ddbench_decoupled.observed import module_of

OUTER = Adam(0.5, 0.9)


@dataclass
class State:
    """Images ``(n, c, h, w)``, the hard ``targets`` ``(n, k)`` that they are recovered for, and Adam's moments."""

    images: Tensor
    targets: Tensor
    moments: Moments


@dataclass(frozen=True)
class Sre2l:
    """Squeeze the data into a teacher, recover images from it, and have it label them.

    | paper | here |
    | --- | --- |
    | L_CE + alpha_BN R_BN | cross entropy of the teacher, in evaluation mode, and ``r_bn`` times the statistics' gap |
    | R_BN | sum over batch-norm layers of abs(mean - mean*)_2 + abs(var - var*)_2, with running statistics * |
    | multi-crop | at 32x32 the code has none, but rolls the batch by 0..``jitter`` pixels along each axis |

    Norms are not squared; the first layer's count ``first_bn`` times, as in the code. Statistics are those of a batch
    ``(b, h, w)`` for each channel: a batch has one image of each class (``batch`` divides or joins such rows). Batches
    do not touch each other: here all of them take a step in every iteration, so ``steps`` is what each image gets,
    as published, where one batch after the other is finished. For the same reason the images of earlier stages, which
    are other batches, play no part in later ones.

    Pixels are clamped to [0, 1] after every step; not under ZCA, where pixels depend on each other. The images are
    the last ones: the variable of the released code that is called best is overwritten by them.

    With ``curriculum`` each batch is seen through one random resized crop before it is rolled, of at least a share of
    its area that falls from 1 to ``smallest`` over ``milestone`` of the iterations (CDA, Yin & Shen, TMLR 2024):
    at once at its end (``step``), evenly (``linear``) or as a cosine, which the paper takes;
    its command for Tiny ImageNet has ``steps=4000``, ``lr_img=0.4``, ``r_bn=0.05`` and ``batch=100``.

    The labels are fixed, the teacher's predictions on the images at ``temperature``; ``--protocol sre2l-paper`` lets
    the teacher label every batch anew. Images fit the teacher's statistics rather than the data: with hard or
    sharp labels, and with small ConvNets as students, they are published to be worse than real ones.
    """

    name = "sre2l"
    paper = "Yin, Xing & Shen, NeurIPS 2023"
    paper_url = "https://arxiv.org/abs/2306.13092"
    published = (Published("SRe2L"), Published("SRe2L(CutMix soft)", variant=True))
    steps: Annotated[int, Ge(1), "iterations per stage, in each of which every image is moved"] = 300
    lr_img: Annotated[float, Gt(0), "first learning rate of Adam, which falls to zero as a cosine"] = 0.25
    r_bn: Annotated[float, Ge(0), "weight of the gap of batch-norm statistics"] = 0.01
    first_bn: Annotated[float, Ge(0), "how much more the first batch-norm layer counts"] = 10.0
    jitter: Annotated[int | None, Ge(0), "largest roll in pixels; by default an eighth of the side, 4 of 32"] = None
    batch: Annotated[int | None, Ge(1), "images whose statistics are matched together; none for one per class"] = None
    pix_init: Annotated[Literal["noise", "real"], "where the images start"] = "noise"
    curriculum: curricula.Curriculum = "none"
    milestone: curricula.Milestone = 1.0
    smallest: curricula.Smallest = 0.08
    labels: teachers.Labels = "teacher"
    temperature: teachers.Temperature = 1.0
    teacher_epochs: teachers.Epochs = 30
    teacher_lr: teachers.Lr = 0.05
    teacher_batch: teachers.Batch = 128

    def needs(self, problem: Problem) -> Needs:
        otherwise = ", or a matcher that needs none, such as rded with matcher.teacher_norm=same"
        source = teachers.batch_normed(problem, otherwise)
        return teachers.needs(problem, source, self.teacher_epochs, self.teacher_lr, self.teacher_batch)

    def init(self, problem: Problem) -> State:
        images, targets = teachers.start(problem, self.pix_init)
        return State(images, targets, OUTER.init(images))

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Move every image once, each by the loss of its own batch; the losses shown are means over batches."""
        squeezed = self._squeezed(problem)
        reach = round(min(problem.real.shape[1:]) / 8) if self.jitter is None else self.jitter
        gradient, parts = torch.empty_like(state.images), []
        for rows in batches(problem.classes, problem.ipc, self.batch):
            leaf = state.images[rows].requires_grad_()
            shown = self._shown(problem, leaf, k)
            shifts = torch.randint(reach + 1, (2,)).tolist()
            logits, gaps = squeezed(shown.roll(shifts, (2, 3)))
            entropy = soft_cross_entropy(logits, state.targets[rows])
            gap = gaps.sum() + (self.first_bn - 1) * gaps[0]
            gradient[rows] = grad(entropy + self.r_bn * gap, leaf)[0]
            parts.append(torch.stack([entropy.detach(), gap.detach()]))
        rate = self.lr_img * (1 + math.cos(math.pi * k / self.steps)) / 2
        moved, state.moments = OUTER.update(state.images, state.moments, gradient, rate)
        state.images = problem.real.preprocessing.clamp(moved)
        entropy, gap = torch.stack(parts).mean(0)
        return state, {"loss": entropy + self.r_bn * gap, "entropy": entropy, "statistics": gap}

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return teachers.labelled(problem, state.images, state.targets, self.labels, self.temperature)

    def _shown(self, problem: Problem, images: Tensor, k: int) -> Tensor:
        """A batch ``(b, c, h, w)`` as the curriculum shows it in iteration ``k``."""
        if self.curriculum == "none":
            return images
        least = curricula.least_area(self.curriculum, k, self.steps, self.milestone, self.smallest)
        return curricula.cropped(problem, images, least)

    def _squeezed(self, problem: Problem) -> Squeezed:
        """Made of the teacher alone, so that a restored run makes the same one."""
        if "sre2l" not in problem.workspace:
            problem.workspace["sre2l"] = Squeezed(teachers.of(problem), problem.real.shape, problem.classes)
        return problem.workspace["sre2l"]


class Squeezed:
    """A teacher in evaluation mode that tells how far a batch is from the statistics of its training data."""

    def __init__(self, teacher: Teacher, shape: tuple[int, int, int], classes: int) -> None:
        self.module = module_of(teacher, shape, classes)
        self.norms = [m for m in self.module.modules() if isinstance(m, nn.BatchNorm2d)]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(b, k)`` of images ``(b, c, h, w)``, and the gap of each batch-norm layer ``(layers,)``.

        Layers are in the order in which the network names them, which makes the stem's the first.
        """
        gaps: dict[nn.Module, Tensor] = {}

        def note(norm: nn.Module, given: tuple[Tensor]) -> None:
            assert isinstance(norm, nn.BatchNorm2d)
            gaps[norm] = statistics_gap(norm, given[0])

        hooks = [norm.register_forward_pre_hook(note) for norm in self.norms]
        try:
            logits = self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, torch.stack([gaps[norm] for norm in self.norms if norm in gaps])


def statistics_gap(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """How far maps ``(b, c, h, w)`` are from what ``norm`` expects: |mean - mean*| + |var - var*|, over channels.

    The variance of the maps is the biased one, as in the code; the running one is torch's, unbiased.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), unbiased=False)
    return (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()


def batches(classes: int, ipc: int, size: int | None) -> tuple[Tensor, ...]:
    """Rows of class-major images, batch by batch: first image of every class, then the second ones, and so on."""
    order = torch.arange(classes * ipc).view(classes, ipc).T.flatten()
    return order.split(size or classes)
