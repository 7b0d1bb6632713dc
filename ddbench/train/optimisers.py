"""Optimisers as pure functions of flat vectors, so that one definition trains and is differentiated.

``update(theta, state, gradient, lr) -> (theta', state')`` uses torch operations only: ``fit`` calls it
to train, and the gradient engine takes its adjoint by autograd. Conventions are those of torch.optim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]


class Optimiser(Protocol):
    """A rule for one step; ``state`` is a tuple of tensors, empty for plain gradient descent."""

    def init(self, theta: Tensor) -> State: ...
    def update(self, theta: Tensor, state: State, gradient: Tensor, lr: Tensor | float) -> tuple[Tensor, State]: ...


@dataclass(frozen=True)
class SGD:
    """m <- momentum m + g + weight_decay theta;  theta <- theta - lr m.

    ``decayed`` ``(p,)``, 0 or 1, says what weight decay applies to; None: to all.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    decayed: Tensor | None = None

    def init(self, theta: Tensor) -> State:
        return (torch.zeros_like(theta),) if self.momentum else ()

    def update(self, theta: Tensor, state: State, gradient: Tensor, lr: Tensor | float) -> tuple[Tensor, State]:
        step = gradient + self.weight_decay * _where(theta, self.decayed) if self.weight_decay else gradient
        if not self.momentum:
            return theta - lr * step, ()
        step = self.momentum * state[0] + step
        return theta - lr * step, (step,)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba), or AdamW when ``decoupled``: weight decay applied to theta directly.

    ``decayed`` as in :class:`SGD`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    decayed: Tensor | None = None

    def init(self, theta: Tensor) -> State:
        return torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros((), dtype=theta.dtype, device=theta.device)

    def update(self, theta: Tensor, state: State, gradient: Tensor, lr: Tensor | float) -> tuple[Tensor, State]:
        first, second, count = state
        count = count + 1
        if self.weight_decay and self.decoupled:
            theta = theta - lr * self.weight_decay * _where(theta, self.decayed)
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * _where(theta, self.decayed)
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * gradient * gradient
        corrected = (second / (1 - self.beta2**count)).clamp_min(1e-30)  # sqrt has no derivative at 0
        step = first / (1 - self.beta1**count) / (corrected.sqrt() + self.eps)
        return theta - lr * step, (first, second, count)


@dataclass(frozen=True)
class Lamb:
    """LAMB (You et al., ICLR 2020): Adam's direction, scaled to the norm of what it moves.

    One tensor is one layer: its trust ratio is |x| / |u| for the update u, and 1 where either is zero. Weight decay
    is decoupled, as published.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    def init(self, theta: Tensor) -> State:
        return Adam().init(theta)

    def update(self, theta: Tensor, state: State, gradient: Tensor, lr: Tensor | float) -> tuple[Tensor, State]:
        first, second, count = state
        count = count + 1
        first = self.beta1 * first + (1 - self.beta1) * gradient
        second = self.beta2 * second + (1 - self.beta2) * gradient * gradient
        corrected = second / (1 - self.beta2**count)
        step = first / (1 - self.beta1**count) / (corrected.sqrt() + self.eps) + self.weight_decay * theta
        size, length = theta.norm(), step.norm()
        trust = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
        return theta - lr * trust * step, (first, second, count)


def _where(theta: Tensor, mask: Tensor | None) -> Tensor:
    return theta if mask is None else theta * mask


def optimiser(name: str, momentum: float, weight_decay: float, decayed: Tensor | None = None) -> Optimiser:
    """The optimiser of a recipe, by the name it has there."""
    if name in ("sgd", "gsam"):  # GSAM is another gradient for the same rule
        return SGD(momentum, weight_decay, decayed)
    return Adam(weight_decay=weight_decay, decoupled=name == "adamw", decayed=decayed)
