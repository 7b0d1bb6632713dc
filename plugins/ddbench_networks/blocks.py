"""What the architectures share: a chain of blocks with one linear layer on top, norms, and image sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ddbench import UsageError
from ddbench.train import fused

SMALL = 2**16  # numbers in a map below which the calls cost more than the work
GROUPS = 4  # of "group" norm, as in the code of DC, DSA, DM and MTT

Norm = Literal["instance", "batch", "group", "layer", "none"]


class Blocks(nn.Module):
    """Blocks one after another, then one linear layer.

    ``features(x) -> (n, f)`` is the last block's map, flattened or averaged over its pixels;
    ``activations(x)`` has one tensor per block, ``(n, c, h, w)`` or, after a linear layer, ``(n, f)``.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], features: int, classes: int, reduce: Literal["flatten", "mean"] = "flatten"
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(*blocks)
        self.classifier = nn.Linear(features, classes)
        self.reduce = reduce

    def activations(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for block in self.body:
            x = block(x)
            maps.append(x)
        return tuple(maps)

    def features(self, x: Tensor) -> Tensor:
        x = self.body(x)
        # not AdaptiveAvgPool2d, whose gradient on CUDA differs from run to run
        return x.mean((2, 3)) if self.reduce == "mean" else x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class HalvingPool(nn.Module):
    """Average pooling 2x2.

    On a CPU torch's own is slow enough to matter to narrow ConvNets. Two additions of neighbours are faster both ways
    (benchmarks/pooling.py), and every transform of torch.func can take them apart.
    """

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if x.is_cuda or h % 2 or w % 2 or x.numel() < SMALL:
            return avg_pool2d(x, 2)
        upper, lower = x.reshape(n * c * (h // 2), 2, w).unbind(1)
        left, right = (upper + lower).view(-1, 2).unbind(1)
        return ((left + right) * 0.25).view(n, c, h // 2, w // 2)


class ConvBlock(nn.Sequential):
    """A convolution and what follows it, of which group norm, ReLU and halving pooling may be one kernel."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if not fused.on():
            return super().forward(input)
        convolution, *rest = self
        x = convolution(input)
        match rest:
            case [nn.GroupNorm() as norm, nn.ReLU(), HalvingPool()] if fused.serves(x, norm.num_groups):
                return fused.normed_relu_pooled(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        for layer in rest:
            x = layer(x)
        return x


def norm_layers(norm: Norm, shape: tuple[int, int, int]) -> list[nn.Module]:
    """The layer that normalises maps of ``shape`` (c, h, w), if there is one.

    "Instance norm" is GroupNorm with a group per channel and affine parameters, as in the field's code,
    and not InstanceNorm2d, which has none.
    """
    channels = shape[0]
    if norm == "instance":
        return [nn.GroupNorm(channels, channels, affine=True)]
    if norm == "group":
        return [nn.GroupNorm(GROUPS, channels, affine=True)]
    if norm == "layer":
        return [nn.LayerNorm(list(shape), elementwise_affine=True)]
    return [nn.BatchNorm2d(channels)] if norm == "batch" else []


def convolved(inputs: int, outputs: int, kernel: int, padding: int, norm: Norm = "none") -> list[nn.Module]:
    """A convolution, a norm that is told no sides (so not ``layer``), and ReLU."""
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), *norm_layers(norm, (outputs, 0, 0)), nn.ReLU()]


def padded(shape: tuple[int, int, int], padding: int) -> tuple[int, tuple[int, int]]:
    """The first convolution's padding, and the sides (h, w) that the images count as.

    28x28 images get two pixels more on every side, and count as 32x32.
    """
    return (padding + 2, (32, 32)) if shape[1:] == (28, 28) else (padding, shape[1:])


def require_side(
    name: str, shape: tuple[int, int, int], sides: tuple[int, int], least: int, why: str, otherwise: str = ""
) -> None:
    """Raise UsageError when the smaller of ``sides`` (h, w) is below ``least``; ``otherwise`` is another way out."""
    if min(sides) < least:
        raise UsageError(
            f"network {name!r} cannot take images of {shape[1]}x{shape[2]} pixels, since {why}; "
            f"images of {least}x{least} pixels and larger ones work{otherwise}"
        )
