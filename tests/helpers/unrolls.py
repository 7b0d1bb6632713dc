"""Autograd through a whole training of ordinary modules: what the gradient engine is compared with.

Nothing in :func:`unrolled` comes from the code under test but the drawn augmentations (which
test_augment.py checks): the student is a ``torch.nn`` module, its parameters a dictionary of tensors, its
loss torch's own, its optimisers written from their publications. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from ddbench_networks import ConvNet
from float64 import error
from modules import Smooth, module_and_leaves
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ddbench import DSA, Examples, Network, Pool, Seed
from ddbench.train.optimisers import SGD, Adam
from ddbench.trajectory.unroll import Gradient, Plan, matching, reverse, student_loss

TIGHT = 1e-10
SHAPE, CLASSES = (3, 8, 8), 3
FULL = "color_crop_cutout_flip_scale_rotate"


@dataclass
class Case:
    """A student, its data and where it should arrive."""

    network: Network
    start: Tensor
    target: Tensor
    pool: Pool
    lr: Tensor
    plan: Plan

    @property
    def loss(self):
        return student_loss(self.network, self.start[self.network.parameters :])

    @property
    def theta(self) -> Tensor:
        return self.start[: self.network.parameters]

    @property
    def terminal(self):
        return matching(self.theta, self.target)

    def reverse(self, **options) -> Gradient:
        return reverse(self.loss, self.terminal, self.theta, self.pool, self.lr, self.plan, **options)


def case(
    steps: int = 5,
    *,
    new: int = 7,
    frozen: int = 0,
    batch: int | None = 4,
    augment: str = "",
    lr: float = 0.3,
    source=ConvNet(width=4, depth=2),  # noqa: B008 (a frozen record)
    seed: int = 0,
) -> Case:
    network = Network(source, SHAPE, CLASSES, dtype=torch.float64)
    with (Seed(11) / seed).scope():
        start = network.init(Seed(seed))
        target = start[: network.parameters] + 0.1 * torch.randn(network.parameters, dtype=torch.float64)

        def examples(n: int) -> Examples:
            images = torch.randn(n, *SHAPE, dtype=torch.float64)
            return Examples(images, torch.randn(n, CLASSES, dtype=torch.float64).softmax(1))

        pool = Pool(examples(new), examples(frozen) if frozen else None)
        plan = Plan.draw(len(pool), steps, batch, DSA(augment))
    return Case(network, start, target, pool, torch.tensor(lr, dtype=torch.float64), plan)


# -- the independent computation -----------------------------------------------------------------------------

Params = dict[str, Tensor]
Rule = Callable[[Params, list[dict], Params, Tensor], Params]


def plain_sgd(theta: Params, memory: list[dict], g: Params, lr: Tensor) -> Params:
    return {k: theta[k] - lr * g[k] for k in theta}


def momentum_sgd(momentum: float, weight_decay: float) -> Rule:
    def rule(theta: Params, memory: list[dict], g: Params, lr: Tensor) -> Params:
        d = {k: g[k] + weight_decay * theta[k] for k in theta}
        if memory:
            d = {k: momentum * memory[-1][k] + d[k] for k in theta}
        memory.append(d)
        return {k: theta[k] - lr * d[k] for k in theta}

    return rule


def adam(beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool) -> Rule:
    """Kingma & Ba, algorithm 1; Loshchilov & Hutter, algorithm 2."""

    def rule(theta: Params, memory: list[dict], g: Params, lr: Tensor) -> Params:
        if not decoupled:
            g = {k: g[k] + weight_decay * theta[k] for k in theta}
        memory.append(g)
        t, after = len(memory), {}
        for k in theta:
            m = sum((1 - beta1) * beta1 ** (t - 1 - i) * old[k] for i, old in enumerate(memory))
            v = sum((1 - beta2) * beta2 ** (t - 1 - i) * old[k] ** 2 for i, old in enumerate(memory))
            step = m / (1 - beta1**t) / ((v / (1 - beta2**t)) ** 0.5 + eps)
            after[k] = theta[k] - lr * step - (lr * weight_decay * theta[k] if decoupled else 0)
        return after

    return rule


def flat(params: Params) -> Tensor:
    return torch.cat([p.flatten() for p in params.values()])


def step_gradient(module: nn.Module, at: Params, x: Tensor, y: Tensor) -> Params:
    loss = cross_entropy(functional_call(module, at, (x,)), y)
    return dict(zip(at, torch.autograd.grad(loss, list(at.values()), create_graph=True), strict=True))


def unrolled(
    c: Case, rule: Rule = plain_sgd, *, detach_theta: bool = False, detach_first: int = 0, terminal=None
) -> Gradient:
    """The end loss and its gradients by autograd through every step.

    ``detach_theta`` takes each theta_t as a constant where its gradient g_t is computed; the first
    ``detach_first`` steps are taken as constants altogether.
    """
    module, theta = module_and_leaves(c.network, c.theta)
    leaves = [t.clone().requires_grad_() for t in (c.pool.new.images, c.pool.new.labels, c.lr)]
    memory: list[dict] = []
    for t, (rows, draw) in enumerate(zip(c.plan.batches, c.plan.draws, strict=True)):
        x, y, lr = leaves
        if c.pool.frozen is not None:
            x, y = torch.cat([c.pool.frozen.images, x]), torch.cat([c.pool.frozen.labels, y])
        at = {k: p.detach().requires_grad_() for k, p in theta.items()} if detach_theta else theta
        g = step_gradient(module, at, draw(x[rows]), y[rows])
        theta = rule(theta, memory, g, lr)
        if t < detach_first:
            theta = {k: p.detach().requires_grad_() for k, p in theta.items()}
            memory[:] = [{k: m.detach() for k, m in old.items()} for old in memory]
    end = flat(theta)
    terminal = terminal or (lambda theta: ((theta - c.target) ** 2).sum() / ((c.theta - c.target) ** 2).sum())
    value = terminal(end)
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
    return Gradient(value.detach(), *gradients, end.detach())


def assert_same(seen: Gradient, expected: Gradient, bound: float = TIGHT) -> None:
    for name in ("loss", "images", "labels", "lr", "end"):
        assert getattr(expected, name).norm() > 0
        assert error(getattr(seen, name), getattr(expected, name)) < bound, name


RULES = {
    "sgd": (SGD(), plain_sgd, 0.3),
    "weight decay": (SGD(weight_decay=0.02), momentum_sgd(0, 0.02), 0.3),
    "momentum": (SGD(0.9, 0.005), momentum_sgd(0.9, 0.005), 0.1),
    "adam": (Adam(), adam(0.9, 0.999, 1e-8, 0, False), 0.02),
    "adam with weight decay": (Adam(0.8, 0.9, 1e-6, 0.03), adam(0.8, 0.9, 1e-6, 0.03, False), 0.02),
    "adamw": (Adam(weight_decay=0.1, decoupled=True), adam(0.9, 0.999, 1e-8, 0.1, True), 0.02),
}


def rule_case(name: str, **options) -> Case:
    smooth = {"source": Smooth()} if "adam" in name else {}
    return case(lr=RULES[name][2], **smooth, **options)


def on_noise(
    width: int = 32, images: int = 16, steps: int = 3, device: str = "cpu", augment: str = "", depth: int = 3
) -> Callable[..., Gradient]:
    """A sweep over noise in float32, to be called with options of ``reverse``."""
    network = Network(ConvNet(width=width, depth=depth), (3, 32, 32), 10, torch.device(device))
    start, target = (network.init(Seed(0) / end) for end in ("start", "target"))
    with Seed(0).scope():
        pool = Pool(Examples(torch.randn(images, 3, 32, 32).to(device), torch.randn(images, 10).softmax(1).to(device)))
        plan = Plan.draw(images, steps, None, DSA(augment))
    task = (student_loss(network), matching(start, target), start, pool, torch.tensor(0.01, device=device), plan)
    return lambda **options: reverse(*task, **options)


def same_bits(seen: Gradient, expected: Gradient) -> bool:
    """Whether two gradients are equal in all that they hold."""
    return all(torch.equal(getattr(seen, n), getattr(expected, n)) for n in ("loss", "images", "labels", "lr", "end"))


SOURCES = {
    "instance": ConvNet(width=4, depth=2),
    "batch": ConvNet(width=4, depth=2, norm="batch"),
    "layer": ConvNet(width=4, depth=2, norm="layer"),
    "none": ConvNet(width=4, depth=2, norm="none"),
    "swish": ConvNet(width=4, depth=2, activation="swish"),
    "sigmoid": ConvNet(width=4, depth=2, activation="sigmoid"),
    "leaky": ConvNet(width=4, depth=2, activation="leakyrelu"),
    "max": ConvNet(width=4, depth=2, pooling="max"),
    "no pooling": ConvNet(width=4, depth=1, pooling="none"),
}
