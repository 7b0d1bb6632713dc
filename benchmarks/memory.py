"""Peak memory of one iteration of ``tesla`` and of ``mtt``, over the student's steps T.

    python benchmarks/memory.py                    # on the CPU
    python benchmarks/memory.py --device cuda

The task is that of CIFAR-10 at ipc 5: 50 images of 3x32x32 in one batch, ten classes, DSA, a ConvNet of
width 32. ``peak`` is what the allocator held at one time beyond the arguments; ``activations`` is that
without the T + 1 parameter vectors theta_0..theta_T, which every method keeps. The data are noise:
memory depends on shapes alone.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ddbench import DSA, Examples, Network, Pool, Seed
from ddbench.base.machine import machine
from ddbench.plugins import registry
from ddbench.trajectory.unroll import Gradient, Plan, Task, matching, student_loss

IMAGES, CLASSES, SHAPE, WIDTH = 50, 10, (3, 32, 32), 32
STEPS = (5, 10, 20, 50)
STRATEGY = "color_crop_cutout_flip_scale_rotate"
METHODS = {"tesla zero": ("tesla", "zero"), "tesla exact": ("tesla", "exact"), "mtt": ("mtt", None)}


@dataclass(frozen=True)
class Peak:
    """Bytes: the most that was allocated at one time, and the parameter vectors in it."""

    total: int
    vectors: int

    @property
    def activations(self) -> int:
        return self.total - self.vectors


def iteration(method: str, steps: int, device: str = "cpu") -> Callable[[], Gradient]:
    """A call that differentiates one unroll of ``steps`` steps, as the matcher does in each iteration."""
    name, curvature = METHODS[method]
    matcher = registry().get("matcher", name).cls(**({"curvature": curvature, "engine": "eager"} if curvature else {}))
    network = _network(device)
    start, target = (network.init(Seed(0) / end) for end in ("start", "target"))
    with (Seed(0) / "memory").scope():
        labels = torch.eye(CLASSES).repeat_interleave(IMAGES // CLASSES, 0)
        pool = Pool(Examples(torch.randn(IMAGES, *SHAPE).to(device), labels.to(device)))
        plan = Plan.draw(IMAGES, steps, None, DSA(STRATEGY))
    task = Task(student_loss(network), matching(start, target), start, pool, torch.tensor(0.01, device=device), plan)
    return lambda: matcher.differentiate(task)


def measure(method: str, steps: int, device: str = "cpu") -> Peak:
    """The peak of one iteration, after one to warm up."""
    work = iteration(method, steps, device)
    iteration(method, 1, device)()
    total = _cuda_peak(work) if device == "cuda" else _cpu_peak(work)
    return Peak(total, (steps + 1) * _network(device).length * 4)


def _network(device: str) -> Network:
    source = registry().get("network", "convnet").cls(width=WIDTH)
    return Network(source, SHAPE, CLASSES, torch.device(device))


def _cuda_peak(work: Callable[[], Any]) -> int:
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(work: Callable[[], Any]) -> int:
    """The largest running sum of the allocator's events; the resident size would depend on the system."""
    gc.collect()
    with torch.autograd.profiler.profile(profile_memory=True) as record:
        work()
    events = [e for e in record.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def table(device: str, steps: tuple[int, ...]) -> str:
    """Markdown: a row per method and T, in MB (10^6 bytes); then how many times tesla's peak that of mtt is."""
    lines = ["| method | T | peak (MB) | vectors (MB) | activations (MB) |", "| --- | ---: | ---: | ---: | ---: |"]
    peaks = {(method, count): measure(method, count, device) for method in METHODS for count in steps}
    for method in METHODS:
        for count in steps:
            peak = peaks[method, count]
            cells = [f"{value / 1e6:.1f}" for value in (peak.total, peak.vectors, peak.activations)]
            lines.append(f"| {method} | {count} | {' | '.join(cells)} |")
    lines.append("")
    for count in steps:
        times = [f"{peaks['mtt', count].total / peaks[m, count].total:.1f} times that of {m}" for m in METHODS][:-1]
        lines.append(f"T = {count}: the peak of mtt is {' and '.join(times)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of one iteration of tesla and mtt.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="T")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("DDBENCH_THREADS", torch.get_num_threads())))
    about = machine(given.device)
    print(f"{about['device']}, {about['system']}, torch {about['torch']}, {torch.get_num_threads()} threads")
    print(f"ConvNet width {WIDTH}, {IMAGES} images of {SHAPE[0]}x{SHAPE[1]}x{SHAPE[2]} per batch\n")
    print(table(given.device, tuple(given.steps)))


if __name__ == "__main__":
    main()
