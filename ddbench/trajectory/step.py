"""One student step, forwards and backwards; symbols as in :mod:`ddbench.trajectory.unroll`.

Backwards, what a step needs of the network is g_t's derivative along v, the cotangent of g_t. Eager code builds
g_t with its graph, finds v by going back through the optimiser, and pulls v back through the graph. Compiled
code is given the direction beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad

from ddbench.data.dataset import Examples
from ddbench.train.fit import soft_cross_entropy
from ddbench.train.network import Network
from ddbench.train.optimisers import SGD, Optimiser, State
from ddbench.trajectory.derivatives import Passes

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (parameters, images, targets) -> scalar
Augment = Callable[[Tensor], Tensor]  # images to images, drawn beforehand: a Draw, say


@dataclass(frozen=True, eq=False)
class StudentLoss:
    """The soft cross-entropy of ``network`` as a function of its parameters (training mode).

    ``buffers`` are the batch-norm statistics that ride along, constant; empty when the network has none.
    """

    network: Network
    buffers: Tensor

    def __call__(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        vector = torch.cat([parameters, self.buffers]) if len(self.buffers) else parameters
        return soft_cross_entropy(self.network.apply(vector, images), labels)


@dataclass(frozen=True, eq=False)
class Cotangents:
    """The cotangents of (theta_t, s_t), and one step's contributions to the gradients of its batch and of lr."""

    adjoint: Tensor
    state_adjoint: State
    lr: Tensor
    images: Tensor
    labels: Tensor


def first_order(loss: Loss, theta: Tensor, images: Tensor, labels: Tensor, passes: Passes | None) -> Tensor:
    """g for an augmented batch, without a graph of it. What is compiled may overwrite it in its next call."""
    if passes is not None:
        assert isinstance(loss, StudentLoss)
        return passes.gradient(theta, loss.buffers, images, labels.detach())
    leaf = theta.detach().requires_grad_()
    return grad(loss(leaf, images, labels.detach()), leaf)[0]


def linear(rule: Optimiser) -> bool:
    """Whether the cotangents through an update do not depend on g, so that g need not be kept: plain SGD."""
    return isinstance(rule, SGD) and not rule.momentum


@dataclass(frozen=True, eq=False)
class Step:
    """Step t, where its student stood: theta_t, s_t, and the batch. ``g`` is there if it was kept."""

    loss: Loss
    rule: Optimiser
    theta: Tensor
    state: State
    lr: Tensor
    batch: Examples
    draw: Augment
    g: Tensor | None = None

    def back(self, adjoint: Tensor, state_adjoint: State, curvature: bool, passes: Passes | None) -> Cotangents:
        """Through the step, from the cotangents of (theta_{t+1}, s_{t+1})."""
        if passes is None:
            return self._eager(adjoint, state_adjoint, curvature)
        if self.g is None:
            return self._along(adjoint, curvature, passes)
        d_theta, d_state, v, lr = self._through_update(self.g, adjoint, state_adjoint)
        images, labels, _, curved = self._derivatives(v, passes)
        return Cotangents(
            d_theta + curved if curvature and curved is not None else d_theta, d_state, lr, images, labels
        )

    def _eager(self, adjoint: Tensor, state_adjoint: State, curvature: bool) -> Cotangents:
        theta = self.theta.requires_grad_()
        images, augmented = self._augmented()
        # The augmented batch is the leaf of the second-order graph: A_t is then passed through once.
        leaf = augmented.detach().requires_grad_()
        labels = self.batch.labels.detach().requires_grad_()
        g = grad(self.loss(theta, leaf, labels), theta, create_graph=True)[0]
        d_theta, d_state, v, lr = self._through_update(g.detach(), adjoint, state_adjoint)
        inputs = [leaf, labels] + ([theta] if curvature else [])
        d_leaf, d_labels, *curved = grad(g, inputs, v, materialize_grads=True)
        d_theta = d_theta + curved[0] if curved else d_theta
        return Cotangents(d_theta, d_state, lr, _pulled(images, augmented, d_leaf), d_labels)

    def _along(self, adjoint: Tensor, curvature: bool, passes: Passes) -> Cotangents:
        """Plain SGD, theta' = (1 - lr w) theta - lr g: derivatives along the adjoint itself, times -lr."""
        assert isinstance(self.rule, SGD)
        decay = self.rule.weight_decay
        images, labels, value, curved = self._derivatives(adjoint, passes)
        lr = -value
        d_theta = adjoint
        if decay:
            lr = lr - decay * (adjoint @ self.theta)
            d_theta = d_theta - self.lr * decay * adjoint
        if curvature and curved is not None:
            d_theta = torch.addcmul(d_theta, self.lr, curved, value=-1)
        return Cotangents(d_theta, (), lr, -self.lr * images, -self.lr * labels)

    def _derivatives(self, direction: Tensor, passes: Passes) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """d<u, g>/d(images, labels), <u, g>, and H u where it was compiled."""
        assert isinstance(self.loss, StudentLoss)
        images, augmented = self._augmented()
        along = passes.along(
            self.theta, self.loss.buffers, augmented.detach(), self.batch.labels.detach(), direction.detach()
        )
        return _pulled(images, augmented, along.images), along.labels, along.value, along.curved

    def _augmented(self) -> tuple[Tensor, Tensor]:
        images = self.batch.images.detach().requires_grad_()
        return images, self.draw(images)

    def _through_update(self, g: Tensor, adjoint: Tensor, state_adjoint: State) -> tuple[Tensor, State, Tensor, Tensor]:
        """Cotangents of (theta', s') through one update: those of (theta, s, g, lr)."""
        inputs = [t.detach().requires_grad_() for t in (self.theta, g, self.lr, *self.state)]
        after, after_state = self.rule.update(inputs[0], tuple(inputs[3:]), inputs[1], inputs[2])
        outputs, cotangents = [after, *after_state], [adjoint, *state_adjoint]
        d_theta, d_g, d_lr, *d_state = grad(outputs, inputs, cotangents, materialize_grads=True)
        return d_theta, tuple(d_state), d_g, d_lr


def _pulled(images: Tensor, augmented: Tensor, cotangent: Tensor) -> Tensor:
    """Back through the augmentation, if there was one."""
    if augmented is images or not augmented.requires_grad:
        return cotangent
    return grad(augmented, images, cotangent)[0]
