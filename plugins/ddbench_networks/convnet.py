"""The ConvNet of dataset distillation, with the variants that papers compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from ddbench import UsageError
from ddbench_networks.blocks import GROUPS, Blocks, ConvBlock, HalvingPool, Norm, norm_layers, padded

ACTIVATIONS = {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "swish": nn.SiLU}
POOLING = {"avg": HalvingPool, "max": lambda: nn.MaxPool2d(2)}


@dataclass(frozen=True)
class ConvNet:
    """The field's ConvNet (Gidaris & Komodakis, CVPR 2018; used by DC, DSA, DM, MTT, TESLA, PDD).

    ``depth`` blocks of [conv 3x3, norm, ReLU, average pooling 2x2], then one linear layer. "Instance
    norm" is GroupNorm with one group per channel and affine parameters. 28x28 images are padded to 32x32
    by the first convolution. Norm, activation and pooling vary as in the code of DC, DSA, DM and MTT: group
    norm has 4 groups, layer norm spans (c, h, w), leaky ReLU has slope 0.01, swish is x sigmoid(x).
    """

    name = "convnet"
    width: Annotated[int, Ge(1), "channels of every convolution"] = 128
    depth: Annotated[int | None, Ge(1), "blocks; by default 3 for 28 or 32 pixels, one more per doubling"] = None
    norm: Annotated[Norm, "normalisation after each convolution"] = "instance"
    activation: Annotated[Literal["relu", "leakyrelu", "sigmoid", "swish"], "what follows each norm"] = "relu"
    pooling: Annotated[Literal["avg", "max", "none"], "how each block halves its map, if it does"] = "avg"

    def __post_init__(self) -> None:
        if self.norm == "group" and self.width % GROUPS:
            below = self.width - self.width % GROUPS
            near = f"{below} or {below + GROUPS}" if below else f"{GROUPS}"
            raise UsageError(
                f"group norm divides channels into {GROUPS} groups, and {self.width} is not a multiple of "
                f"{GROUPS}; use a width of {near}"
            )

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        depth = self.depth or default_depth(shape)
        padding, (height, wide) = padded(shape, 1)
        most = min(height, wide).bit_length() - 1
        if self.pooling != "none" and depth > most:
            raise UsageError(
                f"a ConvNet of depth {depth} is too deep for images of {shape[1]}x{shape[2]} pixels, "
                f"which can be halved {most} times; use a depth of at most {most}"
            )
        channels, blocks = shape[0], []
        for block in range(depth):
            convolution = nn.Conv2d(channels, self.width, 3, padding=1 if block else padding)
            norm = norm_layers(self.norm, (self.width, height, wide))
            layers = [convolution, *norm, ACTIVATIONS[self.activation]()]
            if self.pooling != "none":
                layers.append(POOLING[self.pooling]())
                height, wide = height // 2, wide // 2
            blocks.append(ConvBlock(*layers))
            channels = self.width
        return Blocks(blocks, self.width * height * wide, classes)


def default_depth(shape: tuple[int, int, int]) -> int:
    """3 for 32x32 (28x28 counts as 32x32), 4 for 64x64, 5 for 128x128; 2 for anything below 32."""
    side = min(32 if s == 28 else s for s in shape[1:])
    return max(2, side.bit_length() - 3)
