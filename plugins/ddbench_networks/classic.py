"""MLP, LeNet, AlexNet and VGG-11, in the forms for small images of the code of DC, DSA, DM and MTT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from ddbench_networks.blocks import Blocks, convolved, padded, require_side


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron, as in the code of DC, DSA, DM and MTT: two hidden layers of 128 units with ReLU."""

    name = "mlp"
    width: Annotated[int, Ge(1), "units of every hidden layer"] = 128
    depth: Annotated[int, Ge(1), "hidden layers"] = 2

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        sizes = [prod(shape), *[self.width] * self.depth]
        return Blocks([_dense(a, b) for a, b in pairwise(sizes)], self.width, classes)


@dataclass(frozen=True)
class LeNet:
    """LeNet-5 (LeCun et al., Proc. IEEE 1998) with ReLU and max pooling, as in the code of DC, DSA, DM and MTT.

    Two blocks of [conv 5x5, ReLU, max pooling 2x2], then linear layers of 120, 84 and k units. 28x28
    images are padded to 32x32. The embedding is the layer of 84 units.
    """

    name = "lenet"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        padding, sides = padded(shape, 0)
        require_side(self.name, shape, sides, 16, "its two 5x5 convolutions and poolings leave nothing of them")
        height, width = (((s - 4) // 2 - 4) // 2 for s in sides)
        blocks = [
            nn.Sequential(*convolved(shape[0], 6, 5, padding), nn.MaxPool2d(2)),
            nn.Sequential(*convolved(6, 16, 5, 0), nn.MaxPool2d(2)),
            _dense(16 * height * width, 120),
            _dense(120, 84),
        ]
        return Blocks(blocks, 84, classes)


@dataclass(frozen=True)
class AlexNet:
    """AlexNet (Krizhevsky et al., NeurIPS 2012) for CIFAR, as in the code of DC, DSA, DM and MTT.

    Five convolutions of 128, 192, 256, 192 and 192 channels, max pooling 2x2 after the first, second and
    fifth, one linear layer, no dropout. ``norm="batch"`` is the AlexNetBN of that code. 28x28 images are
    padded to 32x32.
    """

    name = "alexnet"
    width: Annotated[int, Ge(2), "channels of the first convolution; the others keep their ratio to it"] = 128
    norm: Annotated[Literal["none", "batch"], "normalisation after each convolution"] = "none"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        padding, sides = padded(shape, 2)
        require_side(self.name, shape, sides, 8, "it halves them three times")
        middle, most = 3 * self.width // 2, 2 * self.width

        layers = partial(convolved, norm=self.norm)
        last = [*layers(middle, most, 3, 1), *layers(most, middle, 3, 1), *layers(middle, middle, 3, 1)]
        blocks = [
            nn.Sequential(*layers(shape[0], self.width, 5, padding), nn.MaxPool2d(2)),
            nn.Sequential(*layers(self.width, middle, 5, 2), nn.MaxPool2d(2)),
            nn.Sequential(*last, nn.MaxPool2d(2)),
        ]
        return Blocks(blocks, middle * prod(s // 8 for s in sides), classes)


@dataclass(frozen=True)
class VGG11:
    """VGG-11 (Simonyan & Zisserman, ICLR 2015) for CIFAR, as in the code of DC, DSA, DM and MTT.

    Eight times [conv 3x3, norm, ReLU] in five stages, each with max pooling 2x2 at its end, then one linear
    layer instead of three. 28x28 images are padded to 32x32. What the five poolings leave, one pixel of a
    32x32 image, is averaged. ``activations`` are the maps after each stage.
    """

    name = "vgg11"
    width: Annotated[int, Ge(1), "channels of the first stage; the others have 2, 4, 8 and 8 times as many"] = 64
    norm: Annotated[Literal["instance", "batch"], "normalisation after each convolution"] = "instance"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        padding, sides = padded(shape, 1)
        require_side(self.name, shape, sides, 32, "it halves them five times", ", and 28x28 ones, which are padded")
        stages, channels = [], shape[0]
        for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
            layers: list[nn.Module] = []
            for multiple in stage:
                outputs = multiple * self.width
                layers += convolved(channels, outputs, 3, 1 if stages else padding, self.norm)
                channels = outputs
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        return Blocks(stages, channels, classes, "mean")


def _dense(inputs: int, outputs: int) -> nn.Module:
    """A linear layer with ReLU; maps are flattened first."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())
