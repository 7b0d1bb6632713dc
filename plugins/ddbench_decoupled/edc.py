"""EDC: G-VBSM from real images, by the statistics of their classes as well, towards flat minima.

Shao, Zhou, Chen & Shen, "Elucidating the Design Space of Dataset Condensation", NeurIPS 2024.
Shapes: n images, b images of a batch, c channels or p patches of a layer, k classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.autograd import grad

from ddbench import Needs, Problem, SyntheticSet, networks_named, soft_cross_entropy
from ddbench.train.optimisers import Adam
from ddbench.train.optimisers import State as Moments
from ddbench_decoupled import teachers as teaching  # options are called teachers, too
from ddbench_decoupled.curriculum import cropped
from ddbench_decoupled.observed import Memory, Observed, Statistics, dropped, gaps_of, of_classes, of_data

OUTER = Adam(0.5, 0.9)
SOFT = 4.0  # temperature of the predictions that flatness compares, as in the code


@dataclass
class State:
    """Images ``(n, c, h, w)``, hard ``targets`` ``(n, k)``, Adam's moments, statistics, and the images' ``mean``."""

    images: Tensor
    targets: Tensor
    moments: Moments
    memory: Memory
    mean: Tensor


@dataclass(frozen=True)
class Edc:
    """Real images, moved by several teachers so that their statistics are those of the data and of their classes.

    | paper | here |
    | --- | --- |
    | real image initialization | ``pix_init``; then few ``steps`` suffice |
    | soft category-aware matching | a norm(s - s*) + (1 - a) norm(s - mean of s*_y), a is ``alpha`` |
    | flatness regularization | ``flatness`` times KL of predictions from those of the images' mean over iterations |
    | smoothing LR schedule, smaller batches, weak augmentation | ``--protocol edc-paper``, without EMA |

    As in ``g-vbsm`` iteration i asks teacher i mod t of ``teachers``, statistics s are means and variances before batch
    norms and convolutions (there of patches, too), they remember, and s* are those of the real data. s*_y are mean
    statistics of single real images of class y, averaged over the labels of the batch. The norms are summed over the
    statistics of a layer and over layers, the first layer's ``first`` times.

    A batch is ``batch`` images in the order of classes. A teacher sees it through one random resized crop of at least
    ``smallest`` of the area, mirrored as far as the dataset's own augmentation does; the images' exponential mean
    (``decay``) goes through the same crop. Flatness is off in the released command for CIFAR-10, and here.

    Labels are those of ``g-vbsm``: the mean logits of all teachers at ``temperature``.
    """

    name = "edc"
    paper = "Shao et al., NeurIPS 2024"
    paper_url = "https://arxiv.org/abs/2404.13733"
    teachers: Annotated[tuple[str, ...], "networks that teach: own is the run's"] = ("own", "resnet18(norm=batch)")
    steps: Annotated[int, Ge(1), "iterations per stage, in each of which every image is moved"] = 75
    lr_img: Annotated[float, Gt(0), "first learning rate of Adam, which falls to zero as a cosine"] = 0.05
    r_stat: Annotated[float, Ge(0), "weight of the gaps of statistics"] = 0.01
    alpha: Annotated[float, Ge(0), Le(1), "share of the data in the statistics wanted; that of classes is the rest"] = (
        0.5
    )
    first: Annotated[float, Ge(0), "how much more the first layer counts"] = 10.0
    momentum: Annotated[float, Ge(0), Lt(1), "how much of earlier statistics stays"] = 0.8
    drop: Annotated[float, Ge(0), Lt(1), "share of convolutions that an iteration leaves out"] = 0.0
    flatness: Annotated[float, Ge(0), "weight of flatness; 0 leaves it out"] = 0.0
    decay: Annotated[float, Ge(0), Lt(1), "how much of the images' mean stays in an iteration"] = 0.99
    smallest: Annotated[float, Gt(0), Le(1), "least share of an image's area in a crop"] = 0.08
    batch: Annotated[int, Ge(1), "images whose statistics are matched together"] = 100
    pix_init: Annotated[Literal["real", "noise"], "where the images start"] = "real"
    labels: teaching.Labels = "teacher"
    temperature: teaching.Temperature = 1.0
    teacher_epochs: teaching.Epochs = 30
    teacher_lr: teaching.Lr = 0.05
    teacher_batch: teaching.Batch = 128

    def needs(self, problem: Problem) -> Needs:
        sources = networks_named(self.teachers or ("own",), problem.network.source)
        return teaching.needs(problem, sources, self.teacher_epochs, self.teacher_lr, self.teacher_batch)

    def init(self, problem: Problem) -> State:
        images, targets = teaching.start(problem, self.pix_init)
        count = len(teaching.of(problem).members)
        memory: Memory = [[[] for _ in self._rows(images)] for _ in range(count)]
        return State(images, targets, OUTER.init(images), memory, images.clone())

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        """Move every image once, each by the loss of its own batch; the losses shown are means over batches."""
        turn = k % len(state.memory)
        gradient, parts = torch.empty_like(state.images), []
        for place, rows in enumerate(self._rows(state.images)):
            leaf = state.images[rows].requires_grad_()
            entropy, far, flat = self._losses(problem, state, leaf, rows, turn, place)
            gradient[rows] = grad(entropy + self.r_stat * far + self.flatness * flat, leaf)[0]
            parts.append(torch.stack([entropy.detach(), far.detach(), flat.detach()]))
        if self.flatness:  # from before this step, as in the code
            state.mean = self.decay * state.mean + (1 - self.decay) * state.images
        rate = self.lr_img * (1 + math.cos(math.pi * k / self.steps)) / 2
        moved, state.moments = OUTER.update(state.images, state.moments, gradient, rate)
        state.images = problem.real.preprocessing.clamp(moved)
        entropy, far, flat = torch.stack(parts).mean(0)
        loss = entropy + self.r_stat * far + self.flatness * flat
        return state, {"loss": loss, "entropy": entropy, "statistics": far, "flatness": flat}

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return teaching.labelled(problem, state.images, state.targets, self.labels, self.temperature)

    def _rows(self, images: Tensor) -> tuple[Tensor, ...]:
        return torch.arange(len(images)).split(self.batch)

    def _losses(
        self, problem: Problem, state: State, leaf: Tensor, rows: Tensor, turn: int, place: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy, gap of statistics and flatness of a batch ``leaf`` ``(b, c, h, w)`` at teacher ``turn``."""
        observed, data, classes = self._asked(problem)[turn]
        targets = state.targets[rows]
        both = torch.cat([leaf, state.mean[rows]], 1) if self.flatness else leaf  # one crop for a batch and its mean
        shown = cropped(problem, both, self.smallest)
        logits, found = observed(shown[:, : leaf.shape[1]])
        counted = dropped(found, observed, self.drop)
        memory = state.memory[turn]
        wanted = [(self.alpha, data), (1 - self.alpha, of_batch(classes, targets))]
        gaps, memory[place] = gaps_of(wanted, found, memory[place], counted, self.momentum)
        flat = logits.new_zeros(())
        if self.flatness:
            with torch.no_grad():
                smooth = observed(shown[:, leaf.shape[1] :])[0]
            flat = flatness(logits, smooth)
        return soft_cross_entropy(logits, targets), gaps.sum() + (self.first - 1) * gaps[0], flat

    def _asked(self, problem: Problem) -> list[tuple[Observed, list[Statistics], list[Statistics]]]:
        """Each teacher, and what is wanted of the data and of classes: of these alone, so the same when restored."""
        if "edc" not in problem.workspace:
            shape, classes = problem.real.shape, problem.classes
            made = [Observed(member, shape, classes) for member in teaching.of(problem).members]
            problem.workspace["edc"] = [(o, of_data(problem, o), of_classes(problem, o)) for o in made]
        return problem.workspace["edc"]


def of_batch(classes: list[Statistics], targets: Tensor) -> list[Statistics]:
    """The statistics of classes, ``(k, c)`` of each layer, averaged over the labels ``(b, k)`` of a batch: ``(c,)``."""
    return [tuple((targets @ part).mean(0) for part in layer) for layer in classes]


def flatness(logits: Tensor, smooth: Tensor) -> Tensor:
    """KL(softmax(smooth / 4), softmax(logits / 4)), both ``(b, k)``, as a mean over all numbers, as in the code."""
    wanted = (smooth / SOFT).log_softmax(1)
    return (wanted.exp() * (wanted - (logits / SOFT).log_softmax(1))).mean()
