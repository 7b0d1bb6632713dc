"""DM: the mean features of real and synthetic images, matched in random networks.

Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.autograd import grad

from ddbench import DSA, Problem, Published, SyntheticSet
from ddbench_matching.clusters import Interval, Rows, Sampling, chosen_rows
from ddbench_matching.common import (
    Momentum,
    PixInit,
    State,
    augmented,
    begin,
    descend,
    finish,
    not_falling,
    per_class,
    real_rows,
    rows_of,
    shown_images,
)

NUMBERS_AT_ONCE = 8_000_000  # of the images in a forward pass: 2600 of 3x32x32


@dataclass(frozen=True)
class Dm:
    """Give each class the mean features of its real images, in a new random network every iteration.

        L = sum_c | mean_{x in T_c} psi(A_c(x)) - mean_{x in S_c} psi(A_c(x)) |^2

    | paper | here |
    | --- | --- |
    | psi | ``features`` of a network from the problem's starts, not trained |
    | T_c, S_c | ``batch_real`` real images of class c, and all its decoded synthetic ones, frozen ones included |
    | A_c | one draw of DSA for class c, the same for all its images, real and synthetic |
    | eta | ``lr_img`` |

    First-order: one forward pass over real images, and one with its gradient over synthetic ones. Classes go through
    the network in groups, which changes nothing unless it has batch norm: there all classes make one batch, real
    ones and synthetic ones apart, as in the released code. L is a sum over features, so ``lr_img`` depends on
    the width of the network.
    """

    name = "dm"
    paper = "Zhao & Bilen, WACV 2023"
    paper_url = "https://arxiv.org/abs/2110.04181"
    published = (Published("DM"),)
    decodes = True
    steps: Annotated[int, Ge(1), "iterations per stage"] = 300
    batch_real: Annotated[int, Ge(1), "real images per class and iteration, as far as there are so many"] = 256
    lr_img: Annotated[float, Gt(0), "learning rate of the images"] = 1.0
    momentum: Momentum = 0.5
    pix_init: PixInit = "real"
    augment: Annotated[bool, "the same DSA for the real and synthetic images of a class"] = True
    sampling: Sampling = "random"
    cluster_every: Interval = 10

    def init(self, problem: Problem) -> State:
        return begin(problem, self.pix_init, self.momentum)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict[str, float | Tensor]]:
        vector = problem.starts.draw()
        state.rows = chosen_rows(self, problem, vector, k, state.rows)
        loss, gradient = self.match(problem, vector, state.images, state.rows)
        descend(state, gradient, self.lr_img, self.momentum)
        return state, {"loss": loss}

    def passes(self, problem: Problem) -> float:
        """Real images forwards alone, half a pass each; synthetic ones, frozen ones included, backwards too."""
        frozen = sum(len(s) * s.decoder.copies for s in problem.frozen.sets)
        return problem.classes * (0.5 * self.batch_real + problem.ipc * problem.decoder.copies) + frozen

    def stuck(self, problem: Problem, rows: Sequence[Mapping[str, float]]) -> str | None:
        return not_falling(rows)

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return finish(state)

    def match(
        self, problem: Problem, vector: Tensor, images: Tensor, chosen: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """L in the network ``vector``, and its gradient ``(n, c, h, w)`` by all stored ``images``.

        Real images are drawn at random, or those ``chosen`` for each class.
        """
        dsa = problem.dsa if self.augment else DSA()
        losses, gradients = [], []
        for group in _groups(problem, self.batch_real):
            leaves = [images[rows_of(problem, label)].detach().requires_grad_() for label in group]
            rows, draws = [], []
            for label in group:
                rows.append(real_rows(problem, label, self.batch_real, chosen))
                draws.append(dsa.draw(1, siamese=True))
            real = _fetched(problem, torch.cat(rows)).split([len(part) for part in rows])
            shown = [shown_images(problem, leaf, label) for label, leaf in zip(group, leaves, strict=True)]
            with torch.no_grad():
                wanted = _means(problem, vector, augmented(real, draws))
            loss = (_means(problem, vector, augmented(shown, draws)) - wanted).square().sum()
            gradients += grad(loss, leaves)
            losses.append(loss.detach())
        return torch.stack(losses).sum(), torch.cat(gradients)


def _fetched(problem: Problem, rows: Tensor) -> Tensor:
    """Real images ``(r, c, h, w)``, all classes at once; on a GPU from where it holds them."""
    resident = problem.network.device.type == "cuda"
    return (problem.real.at_hand if resident else problem.real)[rows].images


def _means(problem: Problem, vector: Tensor, batches: list[Tensor]) -> Tensor:
    """The mean features ``(len(batches), f)`` of each batch, from one forward pass over all."""
    features = problem.network.features(vector, torch.cat(batches))
    return torch.stack([part.mean(0) for part in features.split([len(batch) for batch in batches])])


def _groups(problem: Problem, batch_real: int) -> Iterator[range]:
    """The classes, as many at a time as a forward pass should hold; with batch norm all of them."""
    network = problem.network
    images = max(batch_real, per_class(problem) * problem.decoder.copies)
    size = max(1, NUMBERS_AT_ONCE // (images * prod(problem.real.shape)))
    if network.length > network.parameters:  # buffers: those of batch norm
        size = problem.classes
    for first in range(0, problem.classes, size):
        yield range(first, min(first + size, problem.classes))
