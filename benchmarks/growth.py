"""How the time and the memory of one TESLA iteration grow, each with the line that was predicted; one plot.

    python benchmarks/growth.py --out docs                  # growth.svg and growth.json, about ten minutes on a CPU
    python benchmarks/growth.py --out docs --device cuda --width 128

One axis at a time is varied around a middle: 10 student steps of 50 images, 10 images per class of 10 classes, 3x32x32,
a ConvNet of width 16. Predicted time is the middle's, scaled by the convolutions of a forward pass (counted on the
meta device) times images per batch and steps. Predicted memory is what ``ddbench run --dry-run`` says: the set with its
momentum, and an iteration played on the meta device. Noise stands for images: costs depend on shapes alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from memory import STRATEGY, _cpu_peak, _cuda_peak
from torch.utils.flop_counter import FlopCounterMode

from ddbench import DSA, Examples, Network, Pool, Seed
from ddbench.base.machine import keep_freed_memory, machine
from ddbench.plugins import registry
from ddbench.problem.problem import state_bytes
from ddbench.trajectory.memory import unroll_bytes
from ddbench.trajectory.unroll import Plan, Task, matching, student_loss

AXES: dict[str, tuple[int, ...]] = {
    "steps": (5, 10, 20, 50),
    "batch": (10, 25, 50, 100),
    "ipc": (1, 10, 50),
    "classes": (10, 100, 1000),
    "size": (32, 64, 128),
}
NAMES = {
    "steps": "student steps",
    "batch": "images per student batch",
    "ipc": "images per class",
    "classes": "classes",
    "size": "side of the images (pixels)",
}


@dataclass(frozen=True)
class Point:
    """The shapes that an iteration costs."""

    steps: int = 10
    batch: int = 50
    ipc: int = 10
    classes: int = 10
    size: int = 32
    width: int = 16
    device: str = "cpu"

    @property
    def network(self) -> Network:
        source = registry().get("network", "convnet").cls(width=self.width)
        return Network(source, (3, self.size, self.size), self.classes, torch.device(self.device))

    @property
    def work(self) -> float:
        """Operations of the forward passes of an iteration, which its time is predicted to follow."""
        network = replace(self.network, device=torch.device("meta"))
        with FlopCounterMode(display=False) as counted:
            network.apply(torch.empty(network.length, device="meta"), torch.empty(1, *network.shape, device="meta"))
        return counted.get_total_flops() * self.batch * self.steps

    @property
    def held(self) -> int:
        """Bytes of the set with its momentum and labels, which stay between iterations."""
        return state_bytes(self.ipc * self.classes, 3 * self.size**2, self.classes)


def measured(point: Point, rounds: int) -> dict[str, Any]:
    """Seconds (of CPU time; the quickest of ``rounds``) and peak bytes of an iteration, and the bytes predicted."""
    matcher = registry().get("matcher", "tesla").cls(engine="eager")
    network, count = point.network, min(point.batch, point.ipc * point.classes)
    start, target = (network.init(Seed(0) / end) for end in ("start", "target"))
    with (Seed(0) / "growth").scope():  # the rows that an iteration reads, as the matcher hands them over
        images = torch.randn(count, *network.shape).to(point.device)
        pool = Pool(Examples(images, torch.eye(point.classes)[torch.arange(count) % point.classes].to(point.device)))
        plan = Plan.draw(count, point.steps, None, DSA(STRATEGY))
    task = Task(
        student_loss(network), matching(start, target), start, pool, torch.tensor(0.01, device=point.device), plan
    )

    def work() -> Any:
        return matcher.differentiate(task)

    clock = time.perf_counter if point.device == "cuda" else time.process_time  # one thread, whatever else runs
    work()
    times = []
    for _ in range(rounds):
        begun = clock()
        work()
        if point.device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begun)
    peak = _cuda_peak(work) if point.device == "cuda" else _cpu_peak(work)
    told = unroll_bytes(matcher.differentiate, network, STRATEGY, count, point.steps)
    return {
        "seconds": min(times),
        "median": sorted(times)[len(times) // 2],
        "bytes": peak + point.held,
        "predicted bytes": told + point.held,
        "batch": count,
    }


def sweep(middle: Point, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """For each axis the points along it, with predicted seconds: the middle's, scaled by the work."""
    base = measured(middle, rounds)["seconds"]
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, values in AXES.items():
        found[axis] = []
        for value in values:
            point = replace(middle, **{axis: value})
            row = {axis: value, **measured(point, rounds)}
            row["predicted seconds"] = base * replace(point, batch=row["batch"]).work / middle.work
            found[axis].append(row)
            print(axis, json.dumps(row), flush=True)
    return found


def plot(found: dict[str, list[dict[str, Any]]], about: str, path: Path) -> None:
    """Time above, memory below, an axis of shapes each; points are measured, lines predicted."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(found), figsize=(3 * len(found), 5.6), squeeze=False)
    for column, (axis, rows) in enumerate(found.items()):
        x = [row[axis] for row in rows]
        for line, (unit, scale) in enumerate((("seconds", 1.0), ("bytes", 1e-6))):
            panel = panels[line][column]
            panel.plot(x, [row[f"predicted {unit}"] * scale for row in rows], "-", color="0.5", label="predicted")
            panel.plot(x, [row[unit] * scale for row in rows], "o", color="C0", label="measured")
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(x, [str(value) for value in x])
            panel.minorticks_off()
            low, high = panel.get_ylim()
            panel.set_ylim(low / 1.5, high * 1.5 if high / low > 2 else high * 3)
            panel.grid(True, which="major", alpha=0.3)
        panels[1][column].set_xlabel(NAMES[axis])
    panels[0][0].set_ylabel("seconds per iteration")
    panels[1][0].set_ylabel("peak memory (MB)")
    panels[0][0].legend()
    figure.suptitle(f"One TESLA iteration: {about}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print each point as JSON, and write the plot and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    about = machine(given.device)
    found = sweep(Point(width=given.width, device=given.device), given.rounds)
    words = f"{about['device']}, torch {about['torch']}, ConvNet of width {given.width}, quickest of {given.rounds}"
    record = {"machine": about, "rounds": given.rounds, "middle": Point(width=given.width).__dict__, "axes": found}
    assert all(math.isfinite(row["seconds"]) for rows in found.values() for row in rows)
    (given.out / "growth.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(found, words, given.out / "growth.svg")


if __name__ == "__main__":
    main()
