"""A training step of a ConvNet with torch's average pooling and with ``HalvingPool``, taking turns.

python benchmarks/pooling.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from ddbench_networks import convnet
from ddbench_networks.blocks import HalvingPool
from torch import nn

from ddbench import Network, Seed, soft_cross_entropy
from ddbench.base.machine import keep_freed_memory, machine

ROUNDS, TASKS = 15, ((16, 256), (32, 50), (128, 10))  # width, images of 3x32x32


def step(width: int, count: int, pool: Callable[[], nn.Module]) -> Callable[[], object]:
    """The gradient of one batch."""
    with patch.dict(convnet.POOLING, {"avg": pool}):
        network = Network(convnet.ConvNet(width=width), (3, 32, 32), 10)
        vector = network.init(Seed(0))
    with Seed(0).scope():
        images, labels = torch.randn(count, 3, 32, 32), torch.eye(10)[torch.arange(count) % 10]

    def work() -> object:
        leaf = vector.detach().requires_grad_()
        return torch.autograd.grad(soft_cross_entropy(network.apply(leaf, images), labels), leaf)

    work()
    return work


def main() -> None:
    """Medians of CPU time, and their ratio."""
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{machine('cpu')['device']}, torch {torch.__version__}, 1 thread, {ROUNDS} rounds")
    for width, count in TASKS:
        ways = {"torch": step(width, count, lambda: nn.AvgPool2d(2)), "ours": step(width, count, HalvingPool)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                began = time.process_time()
                work()
                times[name].append(time.process_time() - began)
        theirs, ours = (1000 * statistics.median(times[name]) for name in ("torch", "ours"))
        print(
            f"width {width}, {count} images: {theirs:.1f} ms with AvgPool2d, {ours:.1f} ms, ratio {theirs / ours:.2f}"
        )


if __name__ == "__main__":
    main()
