"""PAD: DATM whose experts see images by difficulty, and whose loss leaves out a part of the parameters.

Li, Guo, Zhao, Zhang, Cheng, Khaki, Zhang, Sajedi, Plataniotis, Wang & You, "Prioritize Alignment in Dataset
Distillation", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ddbench import Needs, Network, Problem, Published
from ddbench.trajectory.unroll import Terminal
from ddbench_trajectories.datm import Datm


@dataclass(frozen=True)
class Pad(Datm):
    """Prioritize alignment: DATM with a curriculum for its experts, and a loss of deep parameters alone.

        L = sum_{i in K} (theta_T - theta*_{s+M})_i^2 / sum_{i in K} (theta*_s - theta*_{s+M})_i^2

    | paper | here |
    | --- | --- |
    | filtering information extraction: experts begin with the easiest images, | ``easy``, 0.75 of each class |
    | see all of them after a while, | ``all_after``, 20 epochs |
    | and later leave out the easiest | ``drop_after``, 40 and 60 epochs: ``drop``, 0.1 and 0.2 |
    | filtering information embedding: only deep layers are matched | K, by ``ratio`` and ``select`` |
    | all else | as ``datm`` |

    ``select="depth"``: K leaves out the first ``int(ratio L)`` of the network's L parameter tensors, in order of depth;
    the paper speaks of layers. ``select="loss"``: K leaves out the ``int(ratio p)`` of all p parameters that are
    nearest to the target. That is what the released code does, although its configurations have both names for
    the ratio and its README speaks of shallow layers. ``ratio`` depends on ipc: 0 for one image of CIFAR-10, 0.25
    to 0.5 for more.

    Differences from the released code: it reads an order of difficulty from files (GraNd). Here it is EL2N of
    networks that are trained for it, for 5 epochs. Experts are plain ones, or those of FTD as published with
    ``flat=True``. ``experts.easy`` and the other three give the same curriculum to any trajectory matcher. Selection
    by loss takes K as a constant, as the code's gradient does. The released script reads an option that its
    configuration lacks (``loss_threshold_low``); here it counts as given. Its labels for plain real images, and what is
    0/0 there, are as in ``datm``.
    """

    name = "pad"
    paper = "Li et al., 2024"
    paper_url = "https://arxiv.org/abs/2408.03360"
    published = (Published("PAD"),)
    easy: Annotated[float, Gt(0), Le(1), "share of a class's images, the easiest, that experts begin with"] = 0.75
    all_after: Annotated[int, Ge(0), "epochs after which experts see all images"] = 20
    drop_after: Annotated[tuple[int, ...], "epochs after each of which experts leave out the easiest images"] = (40, 60)
    drop: Annotated[tuple[float, ...], "which share of a class's images these are, for each of drop_after"] = (0.1, 0.2)
    ratio: Annotated[float, Ge(0), Lt(1), "share of the parameters that is not matched"] = 0.5
    select: Annotated[Literal["depth", "loss"], "which these are: the shallow ones, or those nearest to the target"] = (
        "depth"
    )

    def needs(self, problem: Problem) -> Needs:
        """DATM's experts, trained by the curriculum."""
        asked = super().needs(problem)
        recipe = asked.recipe or problem.expert_recipe
        paced = replace(recipe, easy=self.easy, all_after=self.all_after, drop_after=self.drop_after, drop=self.drop)
        return replace(asked, recipe=paced)

    def terminal(self, problem: Problem, start: Tensor, target: Tensor) -> Terminal:
        """The loss of the parameters in K."""
        shallow = depth(problem.network, self.ratio) if self.select == "depth" else None

        def loss(theta: Tensor) -> Tensor:
            if shallow is not None:
                kept = slice(shallow, None)
            else:
                errors = (theta.detach() - target).square()
                kept = errors.argsort(stable=True)[int(self.ratio * len(errors)) :]
            return (theta - target)[kept].square().sum() / (start - target)[kept].square().sum()

        return loss


def depth(network: Network, ratio: float) -> int:
    """How many numbers the first ``int(ratio L)`` of a network's L parameter tensors have."""
    sizes, held = [], 0
    for part in network.layers(torch.empty(network.length, device="meta")).values():
        if held < network.parameters:  # buffers come last
            sizes.append(part.numel())
        held += part.numel()
    return sum(sizes[: int(ratio * len(sizes))])
