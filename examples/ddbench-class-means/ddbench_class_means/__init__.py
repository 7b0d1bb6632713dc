"""Distribution matching (Zhao & Bilen, WACV 2023) without its augmentation; the built-in ``dm`` has it all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.autograd import grad

from ddbench import Problem, SyntheticSet, hookimpl


@dataclass
class State:
    """Images (n, c, h, w) with n = classes * ipc, class by class; labels (n, classes); momentum of the images."""

    images: Tensor
    labels: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class ClassMeans:
    """Give each class the mean features of its real images, on networks that need no training."""

    name = "class-means"
    steps: Annotated[int, Ge(1), "iterations per stage"] = 1000
    batch_real: Annotated[int, Ge(1), "real images per class in an iteration"] = 128
    lr: Annotated[float, Gt(0), "learning rate of the images"] = 1.0
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of the images"] = 0.5

    def init(self, problem: Problem) -> State:
        """Real images, which differ from those of earlier stages."""
        examples = problem.sample()
        return State(examples.images, examples.labels, torch.zeros_like(examples.images))

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        network, start = problem.network, problem.starts[k]
        real = problem.real.draw(min(self.batch_real, problem.real.smallest_class))
        with torch.no_grad():
            wanted = class_means(network.features(start, real.images), real.labels)
        images = state.images.detach().requires_grad_()
        inputs, labels = images, state.labels
        if problem.frozen.frozen_examples is not None:  # earlier stages count: the union is what students see
            frozen = problem.frozen.frozen_examples
            inputs, labels = torch.cat([frozen.images, images]), torch.cat([frozen.labels, labels])
        loss = (class_means(network.features(start, inputs), labels) - wanted).square().sum()
        state.momentum.mul_(self.momentum).add_(grad(loss, images)[0])
        state.images.sub_(state.momentum, alpha=self.lr)
        return state, {"loss": loss.detach()}

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(state.images.clone(), state.labels.clone())


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Features (n, f) and labels (n, k), hard or soft, to one mean per class (k, f)."""
    return labels.T @ features / labels.sum(0).unsqueeze(1)


@hookimpl
def register_matchers(register) -> None:
    register(ClassMeans, recipes=Path(__file__).with_name("recipes.toml"))
