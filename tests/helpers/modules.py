"""Ordinary modules with the weights of a vector: what networks as functions of vectors are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddbench import Network


def module_of(network: Network, vector: Tensor) -> nn.Module:
    """A module with a vector as its weights and buffers, put there in the order of its own parameters."""
    module = network.source.build(network.shape, network.classes).to(network.dtype)
    position = 0
    with torch.no_grad():
        for tensor in _tensors(module):
            tensor.copy_(vector[position : position + tensor.numel()].view_as(tensor))
            position += tensor.numel()
    assert position == len(vector)
    return module


def module_and_leaves(network: Network, theta: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module of a network in training, and its parameters at ``theta`` as leaves of autograd, by name."""
    module = network.source.build(network.shape, network.classes).to(network.dtype).train()
    pieces = theta.split([p.numel() for p in module.parameters()])
    named = zip(module.named_parameters(), pieces, strict=True)
    return module, {name: piece.view(p.shape).clone().requires_grad_() for (name, p), piece in named}


def numbers(module: nn.Module) -> Tensor:
    """All weights and buffers of a module in one vector."""
    return torch.cat([t.detach().flatten() for t in _tensors(module)])


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]


class Tanh(nn.Module):
    """Two layers without kinks, dead units or units that a norm cancels."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        c, h, w = shape
        self.inside = nn.Sequential(nn.Conv2d(c, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten())
        self.out = nn.Linear(h * w, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.inside(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inside(x))


@dataclass(frozen=True)
class Smooth:
    """A network for optimisers that divide by gradients."""

    name = "smooth"

    def build(self, shape, classes):
        return Tanh(shape, classes)


@dataclass(frozen=True)
class Bare:
    """A linear classifier, which tells neither features nor activations."""

    name = "bare"

    def build(self, shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
