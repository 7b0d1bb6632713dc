"""A vision transformer for small images."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ddbench import UsageError


@dataclass(frozen=True)
class ViT:
    """A vision transformer (Dosovitskiy et al., ICLR 2021) of the size of DeiT-Ti (Touvron et al., ICML 2021).

    Patches and a class token of ``dim`` numbers, learned positions, ``depth`` layers of [norm, attention]
    and [norm, MLP of 4 ``dim`` units with GELU] with residual connections, and no dropout. By default an
    image has about 8x8 patches: of 4x4 pixels for 28x28 and 32x32 images, 8x8 pixels for 64x64.
    ``features`` is the normalised class token; ``activations`` are the tokens (n, 1 + patches, dim) after
    each layer, the class token first.
    """

    name = "vit"
    dim: Annotated[int, Ge(1), "numbers per token, a multiple of the heads"] = 192
    depth: Annotated[int, Ge(1), "layers"] = 12
    heads: Annotated[int, Ge(1), "attention heads of each layer"] = 3
    patch: Annotated[int | None, Ge(1), "side of a patch in pixels; by default about an eighth of an image's"] = None

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UsageError(
                f"{self.heads} heads cannot divide {self.dim} numbers per token evenly; "
                f"use a dim of {self.heads * (self.dim // self.heads + 1)}"
            )

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        patch = self.patch or default_patch(shape)
        if any(side % patch for side in shape[1:]):
            raise UsageError(
                f"patches of {patch}x{patch} pixels do not divide images of {shape[1]}x{shape[2]} pixels; "
                f"network.patch can be {_choices(shape)}"
            )
        return _ViT(shape, classes, patch, self.dim, self.depth, self.heads)


def default_patch(shape: tuple[int, int, int]) -> int:
    """The side in pixels that divides images of ``shape`` into about 8x8 patches: at least 2, at least 4x4 patches."""
    sides, wanted = shape[1:], min(shape[1:]) / 8
    fitting = [p for p in range(2, min(sides) // 4 + 1) if gcd(*sides) % p == 0]
    if not fitting:
        raise UsageError(
            f"no patch of at least 2x2 pixels divides images of {sides[0]}x{sides[1]} pixels into 4x4 patches or more, "
            f"as those of 8x8, 28x28, 32x32 and 64x64 can be; set network.patch to {_choices(shape)}"
        )
    return min(fitting, key=lambda p: (abs(p - wanted), p))


def _choices(shape: tuple[int, int, int]) -> str:
    common = gcd(*shape[1:])
    return ", ".join(str(p) for p in range(1, common + 1) if common % p == 0)


class _ViT(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        patches = (shape[1] // patch) * (shape[2] // patch)
        self.embed = nn.Conv2d(shape[0], dim, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + patches, dim))
        self.body = nn.Sequential(*(_Layer(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # as in DeiT
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _tokens(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions

    def activations(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens, maps = self._tokens(x), []
        for layer in self.body:
            tokens = layer(tokens)
            maps.append(tokens)
        return tuple(maps)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.body(self._tokens(x))[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class _Layer(nn.Module):
    """Tokens (n, t, dim) to tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.between = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.before(tokens))
        return tokens + self.mlp(self.between(tokens))


class Attention(nn.Module):
    """Self-attention of tokens (n, t, dim) with ``heads`` heads (Vaswani et al., NeurIPS 2017).

    Written out, since the fused kernels behind nn.MultiheadAttention have no second derivatives.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        n, t, dim = tokens.shape
        q, k, v = self.qkv(tokens).view(n, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(2, 3) * (dim // self.heads) ** -0.5).softmax(3)  # (n, heads, t, t)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, dim))
