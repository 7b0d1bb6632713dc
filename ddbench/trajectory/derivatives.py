"""Derivatives of one student step, as functions of ``(theta, buffers, images, labels[, direction])``.

Along a direction u in parameter space, the second-order pass gives d<u, g>/d(images, labels), <u, g>, and H u where
that is wanted. With F the convolutions of a forward pass (backward to images and to parameters: F each):

| formulation | d<u, g>/d(a, y) | and <u, g> | and H u |
| --- | ---: | ---: | ---: |
| autograd twice (what eager steps do) | 7F | 7F | 9F |
| reverse over reverse, g itself left out | 6F | 6F | 8F |
| reverse over forward: the gradient of dl(theta + tau u)/dtau | 6F | 6F | 8F |
| forward over reverse: d/dtau of the gradient at theta + tau u | 6F | 6F | 8F |

Eager, the last two lose in elementwise kernels what they save in convolutions; compiled, those are fused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp

from ddbench.train.fit import soft_cross_entropy
from ddbench.train.network import Network
from ddbench.train.precision import Precision, arithmetic, autocast


class Along(NamedTuple):
    """Derivatives of g along a direction u: d<u, g>/d(images, labels), <u, g>, and H u when asked for."""

    images: Tensor
    labels: Tensor
    value: Tensor
    curved: Tensor | None


@dataclass(frozen=True, eq=False)
class Passes:
    """A student step on batches of one shape: ``(theta, buffers, images, labels[, direction])``."""

    gradient: Callable[..., Tensor]
    along: Callable[..., Along]


def student(network: Network, precision: Precision = "float32") -> Callable[..., Tensor]:
    """The soft cross-entropy as ``(theta, buffers, images, labels)``; the logits are computed at ``precision``."""

    def loss(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        vector = torch.cat([theta, buffers]) if len(buffers) else theta
        with autocast(theta.device, precision):
            logits = network.apply(vector, images)
        return soft_cross_entropy(logits.to(labels.dtype), labels)

    return loss


def eagerly(network: Network, curvature: bool, precision: Precision) -> Passes:
    """By autograd twice, at a precision."""
    loss = student(network, precision)

    def gradient(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        leaf = theta.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf, buffers, images, labels), leaf)[0]

    def along(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Along:
        leaves = [t.detach().requires_grad_() for t in (images, labels, theta)]
        g = torch.autograd.grad(loss(leaves[2], buffers, leaves[0], leaves[1]), leaves[2], create_graph=True)[0]
        wanted = leaves if curvature else leaves[:2]
        d_images, d_labels, *curved = torch.autograd.grad(g, wanted, direction, materialize_grads=True)
        return Along(d_images, d_labels, g.detach() @ direction, curved[0] if curved else None)

    return at(precision, Passes(gradient, along), network.device)


def at(precision: Precision, passes: Passes, device: torch.device) -> Passes:
    """The same passes with torch's switches as the precision wants them, around each."""
    if device.type != "cuda":
        return passes

    def gradient(*given: Tensor) -> Tensor:
        with arithmetic(device, precision):
            return passes.gradient(*given)

    def along(*given: Tensor) -> Along:
        with arithmetic(device, precision):
            return passes.along(*given)

    return Passes(gradient, along)


def gradient(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """g, for a compiler."""

    def gradient(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return grad(loss)(theta, buffers, images, labels)

    return gradient


def along(loss: Callable[..., Tensor], curvature: bool, precision: Precision = "float32") -> Callable[..., Along]:
    """Derivatives along a direction, for a compiler: without H u forward over reverse, with it reverse over reverse.

    torch's autocast does not know forward mode.
    """
    forward = not curvature and precision != "bf16"
    return _forward_over_reverse(loss) if forward else _reverse_over_reverse(loss, curvature)


def _forward_over_reverse(loss: Callable[..., Tensor]) -> Callable[..., Along]:
    def along(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Along:
        def both(at: Tensor) -> tuple[Tensor, ...]:
            gradients, value = grad_and_value(loss, argnums=(2, 3))(at, buffers, images, labels)
            return (value, *gradients)

        value, d_images, d_labels = jvp(both, (theta,), (direction,))[1]
        return Along(d_images, d_labels, value, None)

    return along


def _reverse_over_reverse(loss: Callable[..., Tensor], curvature: bool) -> Callable[..., Along]:
    def along(theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Along:
        def inner(at: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return grad(lambda p: scale * loss(p, buffers, x, y))(at) @ direction

        # <u, g> is linear in the loss, so its derivative by a factor of the loss is <u, g>. That comes with the
        # others; the value itself would need g, whose convolutions are otherwise left out of the compiled code.
        one = torch.ones((), dtype=theta.dtype, device=theta.device)
        wanted = (1, 2, 3, 0) if curvature else (1, 2, 3)
        d_images, d_labels, value, *curved = grad(inner, argnums=wanted)(theta, images, labels, one)
        return Along(d_images, d_labels, value, curved[0] if curved else None)

    return along


class _Node(torch.autograd.Function):
    """g of a step as a node of a graph, whose own graph is that of its passes: they build it when they are asked."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, *batch: Tensor) -> Tensor:
        """g ``(p,)``."""
        ctx.passes = passes
        ctx.save_for_backward(*batch)
        return passes.gradient(*batch)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[reportIncompatibleMethodOverride]
        """The Hessian is symmetric, so a cotangent u of g gives H u to theta."""
        found = ctx.passes.along(*ctx.saved_tensors, cotangent)
        return None, found.curved, None, found.images, found.labels


def differentiable(passes: Passes, theta: Tensor, buffers: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """g ``(p,)`` by ``passes``, as a function that autograd can go back through, once."""
    return _Node.apply(passes, theta, buffers, images, labels)  # type: ignore[reportReturnType]
