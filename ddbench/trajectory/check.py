"""A method's gradient against plain autograd through the unroll, on a small network (``source``) in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddbench.base.seeds import Seed
from ddbench.data.augment import DSA
from ddbench.data.dataset import Examples
from ddbench.problem.synthetic import Pool
from ddbench.train.network import Network
from ddbench.train.source import NetworkSource
from ddbench.trajectory.unroll import Differentiate, Plan, Task, autograd_unroll, by_task, matching, student_loss

CLASSES, IMAGES, FROZEN, BATCH, SHAPE = 5, 15, 5, 8, (3, 8, 8)


def compare_gradients(
    differentiate: Differentiate, source: NetworkSource, *, steps: int, lr: float, seed: int
) -> list[dict[str, Any]]:
    """One row for images, labels and lr: relative error, cosine, and ratio of norms to the unroll's.

    The task: soft labels, overlapping batches that do not divide the images, DSA, some images frozen, and
    a target a short training away from the start.
    """
    network = Network(source, SHAPE, CLASSES, dtype=torch.float64)
    root = Seed(seed) / "check-grad"
    start = network.init(root / "start")
    with (root / "task").scope():
        images = torch.randn(IMAGES, *SHAPE, dtype=torch.float64)
        labels = torch.randn(IMAGES, CLASSES, dtype=torch.float64).softmax(1)
        frozen = Examples(torch.randn(FROZEN, *SHAPE).double(), torch.eye(CLASSES).double())
        target = start + 0.05 * start.abs().mean() * torch.randn_like(start)
        pool = Pool(Examples(images, labels), frozen)
        plan = Plan.draw(len(pool), steps, BATCH, DSA("color_crop_cutout_flip_scale_rotate"))
    rate = torch.tensor(lr, dtype=torch.float64)
    task = Task(student_loss(network), matching(start, target), start, pool, rate, plan)
    got, expected = by_task(differentiate)(task), autograd_unroll(*task)
    return [_row(name, getattr(got, name), getattr(expected, name)) for name in ("images", "labels", "lr")]


def _row(name: str, got: Tensor, expected: Tensor) -> dict[str, Any]:
    a, b = got.flatten(), expected.flatten()
    return {
        "gradient": name,
        "relative_error": float((a - b).norm() / b.norm()),
        "cosine": float(a @ b / (a.norm() * b.norm())),
        "norm_ratio": float(a.norm() / b.norm()),
    }
