"""Network architectures of the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

from ddbench import UsageError, hookimpl


@dataclass(frozen=True)
class ConvNet:
    """The field's ConvNet (Gidaris & Komodakis, CVPR 2018; used by DC, DSA, DM, MTT, TESLA, PDD).

    ``depth`` blocks of [conv 3x3, norm, ReLU, average pooling 2x2], then one linear layer. "Instance
    norm" is GroupNorm with one group per channel and affine parameters. 28x28 images are padded to 32x32
    by the first convolution.
    """

    name = "convnet"
    width: Annotated[int, Ge(1), "channels of every convolution"] = 128
    depth: Annotated[int | None, Ge(1), "blocks; by default 3 for 28 or 32 pixels, one more per doubling"] = None
    norm: Annotated[Literal["instance", "batch", "none"], "normalisation after each convolution"] = "instance"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return _ConvNet(shape, classes, self.width, self.depth or default_depth(shape), self.norm)


def default_depth(shape: tuple[int, int, int]) -> int:
    """3 for 32x32 (28x28 counts as 32x32), 4 for 64x64, 5 for 128x128; 2 for anything below 32."""
    side = min(32 if s == 28 else s for s in shape[1:])
    return max(2, side.bit_length() - 3)


class _ConvNet(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, depth: int, norm: str) -> None:
        super().__init__()
        channels, height, wide = shape
        blocks: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if block == 0 and (height, wide) == (28, 28) else 1
            height, wide = (height + 2 * padding - 2) // 2, (wide + 2 * padding - 2) // 2
            convolution = nn.Conv2d(channels, width, 3, padding=padding)
            blocks += [convolution, *_norm(norm, width), nn.ReLU(), nn.AvgPool2d(2)]
            channels = width
        if min(height, wide) < 1:
            raise UsageError(f"a ConvNet of depth {depth} is too deep for images of {shape[1]}x{shape[2]} pixels")
        self.body = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * height * wide, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _norm(norm: str, width: int) -> list[nn.Module]:
    if norm == "instance":
        return [nn.GroupNorm(width, width, affine=True)]
    return [nn.BatchNorm2d(width)] if norm == "batch" else []


@hookimpl
def register_networks(register) -> None:
    register(ConvNet)
