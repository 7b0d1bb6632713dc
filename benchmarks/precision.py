"""What lower precisions and channels-last do to one student step: how far off they are, and how long they take.

    python benchmarks/precision.py --device cuda                  # ConvNet-D3 of width 128, 50 images of 3x32x32
    python benchmarks/precision.py --width 32 --images 16         # on a CPU, where TF32's rounding is imitated

Errors are those by which the engine decides (:mod:`ddbench.trajectory.engine`): relative, of g (``gradient``), of the
median image's d<u, g>/dx (``images``) and d<u, g>/dy (``labels``), of <u, g> (``value``), H u (``curved``); for a fresh
student and for one that has taken ``--trained`` steps. Times are medians over ``--rounds`` of a step forwards (g) and
of its second-order pass, methods taking turns. Channels-last: images go in that way, and every convolution's weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from two_pass import CLASSES, SHAPE, measure

from ddbench import Network, Seed
from ddbench.base.machine import machine
from ddbench.plugins import registry
from ddbench.train.compile import relative_error
from ddbench.trajectory.derivatives import Passes, eagerly

NAMES = ("gradient", "images", "labels", "value", "curved")
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm"}


@dataclass(frozen=True)
class Given:
    """What a step is computed from."""

    network: Network
    theta: Tensor
    images: Tensor
    labels: Tensor
    direction: Tensor

    def all(self, passes: Passes) -> list[Tensor]:
        first = passes.gradient(self.theta, self.theta[:0], self.images, self.labels)
        return [first, *passes.along(self.theta, self.theta[:0], self.images, self.labels, self.direction)]


def given(width: int, images: int, trained: int, device: str) -> Given:
    network = Network(registry().get("network", "convnet").cls(width=width), SHAPE, CLASSES, torch.device(device))
    theta = network.init(Seed(0))
    with (Seed(0) / "precision").scope():
        x, y = torch.randn(images, *SHAPE).to(device), torch.randn(images, CLASSES).softmax(1).to(device)
        direction = torch.randn(len(theta)).to(device) * theta.std()
        sharp = torch.eye(CLASSES)[torch.arange(images) % CLASSES].to(device)
    passes = eagerly(network, False, "float32")
    for _ in range(trained):
        theta = theta - 0.1 * passes.gradient(theta, theta[:0], x, sharp)
    return Given(network, theta, x, y, direction)


def to_tf32(tensor: Any) -> Any:
    """Rounded to 10 bits of mantissa, to the nearest, ties to even."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        return tensor
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Imitated(TorchDispatchMode):
    """Operands of convolutions and matrix products rounded as tensor cores round them; sums stay in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in PRODUCTS:
            args = tuple(map(to_tf32, args))
        return func(*args, **(kwargs or {}))


def imitating(passes: Passes) -> Passes:
    def inside(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with Imitated():
                return function(*arguments)

        return call

    return Passes(inside(passes.gradient), inside(passes.along))


@contextmanager
def channels_last(on: bool) -> Iterator[None]:
    """Every convolution of a module with its weights in that order of memory; activations follow them."""
    usual = nn.Conv2d.forward

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(x.contiguous(memory_format=torch.channels_last), weight, self.bias)

    with patch.object(nn.Conv2d, "forward", forward if on else usual):
        yield


def ways(network: Network, curvature: bool) -> dict[str, Passes]:
    """Passes by name; on a CPU tf32 is imitated."""
    found = {precision: eagerly(network, curvature, precision) for precision in ("float32", "tf32", "bf16")}
    if network.device.type == "cpu":
        found["tf32"] = imitating(found["tf32"])
    return found


def errors(task: Given) -> dict[str, list[float]]:
    """Relative errors of each way, against float32."""
    made = ways(task.network, True)
    expected = task.all(made.pop("float32"))
    scales = {"value": task.direction.norm() * expected[0].norm()}

    def off(passes: Passes) -> list[float]:
        return [relative_error(f, e, scales.get(n)) for n, f, e in zip(NAMES, task.all(passes), expected, strict=True)]

    return {name: off(passes) for name, passes in made.items()}


def step(task: Given, passes: Passes, last: bool) -> Callable[[], object]:
    images = task.images.contiguous(memory_format=torch.channels_last) if last else task.images

    def call() -> object:
        with channels_last(last):
            return replace(task, images=images).all(passes)

    return call


def times(task: Given, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of a step (forwards and second order) by precision and order of memory, in each round."""
    work = {}
    for curvature in (False, True):
        for name, passes in ways(task.network, curvature).items():
            if device == "cuda" or name != "tf32":  # an imitation says nothing of times
                for last in (False, True):
                    curved = ", exact" if curvature else ", zero"
                    work[f"{name}{curved}{', channels-last' if last else ''}"] = step(task, passes, last)
    return measure(work, rounds, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 128), ("images", 50), ("trained", 30), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    about = machine(asked.device)
    print(
        f"{about['device']}, {about['system']}, torch {about['torch']}, ConvNet of width {asked.width}, "
        f"{asked.images} images of 3x32x32, {asked.rounds} rounds\n"
    )
    print(f"| relative errors | {' | '.join(NAMES)} |\n| --- |{' ---: |' * len(NAMES)}")
    for state, trained in (("fresh", 0), (f"after {asked.trained} steps", asked.trained)):
        for name, off in errors(given(asked.width, asked.images, trained, asked.device)).items():
            imitated = ", imitated" if asked.device == "cpu" and name == "tf32" else ""
            print(f"| {name}{imitated}, {state} | {' | '.join(f'{e:.1e}' for e in off)} |")
    print("\n| step forwards and second-order pass, eager | ms |\n| --- | ---: |")
    task = given(asked.width, asked.images, 0, asked.device)
    for name, values in times(task, asked.rounds, asked.device).items():
        print(f"| {name} | {1000 * statistics.median(values):.1f} |")


if __name__ == "__main__":
    main()
