"""ResNet-18 for small images, with strided convolutions or with average pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

from ddbench_networks.blocks import Blocks, norm_layers, require_side

Normed = Literal["instance", "batch"]
NormOption = Annotated[Normed, "normalisation after each convolution"]
Width = Annotated[int, Ge(1), "channels of the first stage, doubled by each of the other three"]
FLAT = "instance norm makes constants of maps of one pixel, as its last stage would have"


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 (He et al., CVPR 2016) for CIFAR, as in the code of DC, DSA, DM and MTT.

    A 3x3 stem of stride 1 without max pooling, then four stages of two residual blocks, of which the
    last three halve the map with a strided convolution. The embedding is the mean over the last map's
    pixels, for 32x32 images the published 4x4 average pooling. ``activations`` are the stages' maps.
    """

    name = "resnet18"
    width: Width = 64
    norm: NormOption = "instance"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        if self.norm == "instance":
            require_side(self.name, shape, shape[1:], 9, FLAT, ", and all sizes with network.norm=batch")
        return Blocks(_stages(shape[0], self.width, self.norm, pooled=False), 8 * self.width, classes, "mean")


@dataclass(frozen=True)
class ResNet18AP:
    """ResNet-18 with average pooling, the ResNet18_AP of the code of DC and DSA.

    Where ResNet-18 has a convolution of stride 2, this has one of stride 1 and average pooling 2x2. The
    embedding is the last map, flattened and not averaged: 8192 numbers for 32x32 images.
    """

    name = "resnet18-ap"
    width: Width = 64
    norm: NormOption = "instance"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        height, width = shape[1:]
        if self.norm == "instance":
            require_side(self.name, shape, shape[1:], 16, FLAT, ", and from 8x8 on with network.norm=batch")
        require_side(self.name, shape, shape[1:], 8, "it halves them three times")
        features = 8 * self.width * (height // 8) * (width // 8)
        return Blocks(_stages(shape[0], self.width, self.norm, pooled=True), features, classes)


def _stages(channels: int, width: int, norm: Normed, *, pooled: bool) -> list[nn.Module]:
    """The stem and the first stage, and the other three stages."""
    stages, inputs = [], width
    for stage in range(4):
        outputs = width * 2**stage
        blocks = [_Residual(inputs, outputs, norm, halve=stage > 0, pooled=pooled)]
        blocks += [_Residual(outputs, outputs, norm, halve=False, pooled=pooled)]
        stem = [] if stage else [_convolution(channels, width, 3), *norm_layers(norm, (width, 0, 0)), nn.ReLU()]
        stages.append(nn.Sequential(*stem, *blocks))
        inputs = outputs
    return stages


class _Residual(nn.Module):
    """relu(main(x) + shortcut(x)) with two 3x3 convolutions; the first one halves the map if asked."""

    def __init__(self, inputs: int, outputs: int, norm: Normed, *, halve: bool, pooled: bool) -> None:
        super().__init__()
        stride = 2 if halve and not pooled else 1
        pool = [nn.AvgPool2d(2)] if halve and pooled else []

        def normed() -> list[nn.Module]:
            return norm_layers(norm, (outputs, 0, 0))

        first = [_convolution(inputs, outputs, 3, stride), *normed(), nn.ReLU(), *pool]
        self.main = nn.Sequential(*first, _convolution(outputs, outputs, 3), *normed())
        self.shortcut = nn.Sequential()
        if halve or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), *pool, *normed())
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
