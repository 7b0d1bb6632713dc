"""TESLA the straightforward way, as a yardstick: the engine's times are quoted as ratios to this.

    python benchmarks/two_pass.py                                  # ConvNet-D3, width 128, 32 images of 3x32x32
    python benchmarks/two_pass.py --width 32 --batch 50 --steps 10
    python benchmarks/two_pass.py --device cuda --batch 100 --precisions float32 tf32

Two passes over the student's steps, by autograd and nothing else: forwards for theta_T, then once more with each
step's graph (``create_graph``) for d<v, g_t>/dx (Cui et al., ICML 2023, eq. 5-6), on a ConvNet of torch's own layers as
published code has it. This file does not change when the engine or the networks do; *two-pass, our layers* is the same
on ddbench's ConvNet, and tells what the engine alone gains. Times are CPU seconds of the process's one thread, on CUDA
seconds until the GPU is done; methods take turns in every round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ddbench_networks.blocks import HalvingPool
from ddbench_networks.convnet import ConvNet
from torch import Tensor, nn
from torch.autograd import grad

from ddbench import DSA, Examples, Network, Pool, Seed
from ddbench.base.machine import keep_freed_memory, machine
from ddbench.train.compile import account
from ddbench.train.precision import Precision, switched
from ddbench.trajectory.engine import Engine
from ddbench.trajectory.unroll import Gradient, Plan, autograd_unroll, matching, reverse, student_loss

SHAPE, CLASSES = (3, 32, 32), 10
STRATEGY = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Task:
    """A student's unroll on noise: times depend on shapes alone."""

    network: Network
    start: Tensor
    target: Tensor
    pool: Pool
    lr: Tensor
    plan: Plan


@dataclass(frozen=True)
class Stock(ConvNet):
    """The ConvNet with torch's average pooling."""

    name = "stock-convnet"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        module = super().build(shape, classes)
        for part in list(module.modules()):
            for name, child in part.named_children():
                if isinstance(child, HalvingPool):
                    setattr(part, name, nn.AvgPool2d(2))
        return module


def task(width: int, batch: int, steps: int, strategy: str = STRATEGY, device: str = "cpu") -> Task:
    network = Network(ConvNet(width=width), SHAPE, CLASSES, torch.device(device))
    start, target = (network.init(Seed(0) / end) for end in ("start", "target"))
    with (Seed(0) / "two-pass").scope():
        images, labels = torch.randn(batch, *SHAPE).to(device), torch.randn(batch, CLASSES).softmax(1).to(device)
        plan = Plan.draw(batch, steps, None, DSA(strategy))
    return Task(network, start, target, Pool(Examples(images, labels)), torch.tensor(0.01, device=device), plan)


def two_pass(t: Task, network: Network) -> Gradient:
    """The published gradient: every theta_t independent of earlier images."""

    def gradient(theta: Tensor, images: Tensor, labels: Tensor, graph: bool) -> Tensor:
        loss = -(labels * network.apply(theta, images).log_softmax(1)).sum(1).mean()
        return grad(loss, theta, create_graph=graph)[0]

    images, labels = t.pool.new.images, t.pool.new.labels
    path = [t.start]
    for rows, draw in zip(t.plan.batches, t.plan.draws, strict=True):
        theta = path[-1].detach().requires_grad_()
        g = gradient(theta, draw(images[rows]), labels[rows], graph=False)
        path.append((theta - t.lr * g).detach())
    end = path[-1].requires_grad_()
    loss = (end - t.target).square().sum() / (t.start - t.target).square().sum()
    adjoint = grad(loss, end)[0]
    by_images, by_labels, by_lr = torch.zeros_like(images), torch.zeros_like(labels), torch.zeros_like(t.lr)
    for theta, rows, draw in zip(path, t.plan.batches, t.plan.draws, strict=False):
        rows = rows.to(images.device)
        x, y = images[rows].requires_grad_(), labels[rows].requires_grad_()
        g = gradient(theta.detach().requires_grad_(), draw(x), y, graph=True)
        d_x, d_y = grad(g, (x, y), -t.lr * adjoint)
        by_images.index_add_(0, rows, d_x)
        by_labels.index_add_(0, rows, d_y)
        by_lr -= adjoint @ g.detach()
    return Gradient(loss.detach(), by_images, by_labels, by_lr, end.detach())


def methods(
    t: Task, kinds: tuple[str, ...], precisions: tuple[Precision, ...] = ("float32",)
) -> dict[str, Callable[[], Gradient]]:
    """The two-pass form, MTT's autograd, and the engine, by the names that tables use."""
    unroll = (student_loss(t.network), matching(t.start, t.target), t.start, t.pool, t.lr, t.plan)

    def engine(curvature: str, kind: str, precision: Precision) -> Callable[[], Gradient]:
        return lambda: reverse(*unroll, curvature=curvature, engine=Engine(kind, precision=precision))

    def exact(call: Callable[[], Gradient]) -> Callable[[], Gradient]:
        """On CUDA, without rounding to TF32, as the engine's steps in float32."""

        def called() -> Gradient:
            with switched(tf32=False):
                return call()

        return called

    stock = Network(Stock(t.network.source.width), SHAPE, CLASSES, t.network.device)
    made = {
        "two-pass": exact(lambda: two_pass(t, stock)),
        "two-pass, our layers": exact(lambda: two_pass(t, t.network)),
        "mtt": exact(lambda: autograd_unroll(*unroll)),
    }
    for kind, precision in itertools.product(kinds, precisions):
        named = "" if precision == "float32" else f" {precision}"
        made |= {f"{curvature} {kind}{named}": engine(curvature, kind, precision) for curvature in ("zero", "exact")}
    return made


def measure(work: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each method in each round, after calls to warm up, compile and record."""
    keep_freed_memory()  # as in a run
    clock = until_done if device == "cuda" else time.process_time
    for call in list(work.values()) * (2 if device == "cuda" else 1):
        call()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            began = clock()
            call()
            times[name].append(clock() - began)
    return times


def until_done() -> float:
    """The time when the GPU has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def ratios(times: dict[str, list[float]], base: str = "two-pass") -> dict[str, list[float]]:
    """How many times faster than ``base`` each method was, round by round."""
    return {name: [b / own for b, own in zip(times[base], values, strict=True)] for name, values in times.items()}


def table(times: dict[str, list[float]], steps: int) -> str:
    lines = ["| method | ms per student step | times faster | from | to |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, faster in ratios(times).items():
        middle = 1000 * statistics.median(times[name]) / steps
        spread = f"{statistics.median(faster):.2f} | {min(faster):.2f} | {max(faster):.2f}"
        lines.append(f"| {name} | {middle:.1f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine's time, as ratios to two-pass TESLA.")
    for name, value in (("width", 128), ("batch", 32), ("steps", 4), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--kinds", nargs="+", default=("eager", "compiled"))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "tf32", "bf16"), default=("float32",))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = machine(given.device)
    print(f"{about['device']}, {about['system']}, torch {about['torch']}, 1 thread, {given.rounds} rounds")
    print(f"ConvNet width {given.width}, {given.batch} images of 3x32x32 per batch, {given.steps} steps\n")
    made = task(given.width, given.batch, given.steps, device=given.device)
    work = methods(made, tuple(given.kinds), tuple(given.precisions))
    print(table(measure(work, given.rounds, given.device), given.steps))
    for note in account():
        print(note)


if __name__ == "__main__":
    main()
