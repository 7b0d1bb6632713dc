"""Data and TESLA at the size of ImageNet-1K: memory and time on a generated set of 1,000 classes.

    python benchmarks/scale.py make FOLDER              # 200,000 images of 3x64x64 (2.5 GB), once
    python benchmarks/scale.py data FOLDER              # statistics, a full pass, class-wise draws
    python benchmarks/scale.py tesla FOLDER             # a few whole iterations with 50,000 synthetic images
    python benchmarks/scale.py tesla FOLDER --device cuda
    python benchmarks/scale.py zca                      # fitting ZCA on 50,000 images of 3x32x32, and reading it back

``data`` reports the peak of anonymous memory beyond what torch itself takes: pages of the mapped file are the
system's, which takes them back when it needs them. ``tesla`` runs the matcher as the harness does, but its expert
endpoints are a fresh ConvNet-D4 and the same after a few SGD updates on real batches, not after epochs: right for
memory and time, useless for accuracy. The images are smooth noise with a mean per class.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from memory import _cpu_peak, _cuda_peak

from ddbench import Dataset, Pixels, Preprocessing, Problem, Recipe, Seed, Starts, Teaching
from ddbench.base.cache import Cache
from ddbench.base.machine import anonymous_bytes, machine
from ddbench.data.dataset import RealData
from ddbench.plugins import registry
from ddbench.problem.problem import state_bytes
from ddbench.train.fit import Student, fit
from ddbench.train.network import Network
from ddbench.trajectory.memory import unroll_bytes

CLASSES, PER_CLASS, SHAPE, TEST = 1000, 200, (3, 64, 64), 2000
STRATEGY = "color_crop_cutout_flip_scale_rotate"
MB = 1e6


def make(folder: Path, per_class: int = PER_CLASS) -> None:
    """``pixels.npy`` (n + test, 3, 64, 64) uint8 in class order; written block by block."""
    folder.mkdir(parents=True, exist_ok=True)
    count = CLASSES * per_class + TEST
    path = folder / "pixels.part.npy"
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *SHAPE))
    generator = np.random.default_rng(0)
    for start in range(0, count, 2000):
        size = min(2000, count - start)
        coarse = generator.integers(0, 256, (size, 3, 8, 8), dtype=np.uint8)
        pixels[start : start + size] = coarse.repeat(8, axis=2).repeat(8, axis=3)
        label = np.arange(start, start + size) // per_class % 251
        pixels[start : start + size, 0, :8, :8] = label[:, None, None]
    pixels.flush()
    path.rename(folder / "pixels.npy")


def load(folder: Path) -> Dataset:
    """The generated set, mapped from its file."""
    pixels = torch.from_numpy(np.load(folder / "pixels.npy", mmap_mode="c"))
    count = len(pixels) - TEST
    targets = torch.arange(CLASSES).repeat_interleave(count // CLASSES)
    test = torch.arange(TEST) % CLASSES
    names = tuple(f"{label:04d}" for label in range(CLASSES))
    return Dataset.split("generated", names, (pixels[:count], targets), (pixels[count:], test))


@contextmanager
def watched(peak: dict[str, int]) -> Iterator[None]:
    """Sample anonymous memory every few milliseconds into ``peak["bytes"]``."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            peak["bytes"] = max(peak["bytes"], anonymous_bytes())

    peak["bytes"] = anonymous_bytes()
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def seconds(work: Any, times: int = 5) -> float:
    """The median over ``times`` calls."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[times // 2]


def data(folder: Path) -> dict[str, Any]:
    """Load, one pass over all batches as the trainer makes them, draws."""
    torch.ones(8).square().sum()  # torch's own memory is there before the count begins
    before, peak = anonymous_bytes(), {"bytes": 0}
    with watched(peak):
        began = time.perf_counter()
        dataset = load(folder)
        loading = time.perf_counter() - began
        began = time.perf_counter()
        total = sum(float(batch.images.sum()) for batch in dataset.train.batches(256))
        passing = time.perf_counter() - began
    _ = dataset.train.members  # made once
    return {
        "images": len(dataset.train) + len(dataset.validation),
        "classes": len(dataset.classes),
        "finite": bool(np.isfinite(total)),
        "load with statistics and split (s)": round(loading, 2),
        "full pass, batches of 256 (s)": round(passing, 2),
        "images per second": round(len(dataset.train) / passing),
        "anonymous memory at the peak, beyond torch's own (MiB)": round((peak["bytes"] - before) / 2**20),
        "draw 1 image of each of 1000 classes (ms)": round(1e3 * seconds(lambda: dataset.train.draw(1)), 1),
        "draw 128 images of one class (ms)": round(1e3 * seconds(lambda: dataset.train.draw(128, [7])), 1),
    }


def zca(count: int = 50_000) -> dict[str, Any]:
    """Fit ZCA on smooth noise of CIFAR's size; memory beyond the images, and the time to find the fit again."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).to(torch.uint8)
    pixels = Pixels.of(coarse.repeat_interleave(4, 2).repeat_interleave(4, 3))
    before, peak = anonymous_bytes(), {"bytes": 0}
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, {"DDBENCH_HOME": home}):
        with watched(peak):
            first = seconds(lambda: Preprocessing.cached(pixels, zca=True), 1)
        again = seconds(lambda: Preprocessing.cached(pixels, zca=True), 1)
    return {
        "images": count,
        "values per image": pixels.shape[1:].numel(),
        "fit (s)": round(first, 1),
        "found again (s)": round(again, 2),
        "anonymous memory at the peak, beyond the images (MiB)": round((peak["bytes"] - before) / 2**20),
    }


def endpoints(real: RealData, network: Network, updates: int) -> SimpleNamespace:
    """Experts made by a few updates instead of epochs: a start, and where SGD is after ``updates`` steps."""
    start = network.init(Seed(0) / "endpoint")
    few = real.subset(torch.arange(0, len(real), max(1, len(real) // (64 * updates)))[: 64 * updates])
    recipe = Recipe(steps=updates, batch=64, lr=0.01, augment=STRATEGY)
    ends = [start, fit(network, Student(start), few, recipe, Seed(0) / "fit").vector]
    p = network.parameters
    return SimpleNamespace(
        segment=lambda index, epoch, span: (ends[0][:p], ends[1][:p]),
        snapshot=lambda index, epoch: ends[min(epoch, 1)],
    )


def task(folder: Path, ipc: int, width: int, updates: int, device: str) -> Problem:
    """The problem that the harness would pose, with experts of a few updates."""
    real = load(folder).train.to(device)
    source = registry().get("network", "convnet").cls(width=width)
    network = Network(source, SHAPE, CLASSES, torch.device(device))
    starts = Starts(network, Seed(0) / "starts", Teaching(Recipe(steps=1)), Cache(folder / "cache"))
    problem = Problem(real, ipc, starts, Recipe(epochs=1, augment=STRATEGY), STRATEGY, Seed(0))
    problem.__dict__["experts"] = endpoints(real, network, updates)  # the place of the cached property
    return problem


def tesla(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each (syn_steps, batch_syn): seconds and memory of an iteration, and what was predicted."""
    problem = task(given.folder, given.ipc, given.width, given.updates, given.device)
    cls = registry().get("matcher", "tesla").cls
    count = given.ipc * CLASSES
    base = cls(experts=1, max_start=1, span=1, relabel=True, labels="teacher", clip=None, lr_img=1.0)
    with Seed(0).scope():
        state = unlabelled(base.init, problem)
    rows = []
    for steps, batch in given.settings:
        method = replace(base, syn_steps=steps, batch_syn=batch)
        taken, losses, whole = [], [], {"bytes": 0}

        def iteration(k: int, method: Any = method, taken: list[float] = taken, losses: list[float] = losses) -> None:
            with (Seed(0) / "step" / k).scope():
                began = time.perf_counter()
                losses.append(float(method.step(problem, state, k)[1]["loss"]))  # the state is changed in place
                taken.append(time.perf_counter() - began)

        with watched(whole):
            for k in range(given.iterations):
                iteration(k)
        peak = (_cuda_peak if given.device == "cuda" else _cpu_peak)(lambda: iteration(given.iterations))
        predicted = unroll_bytes(method.differentiate, problem.network, STRATEGY, batch, steps)
        rows.append(
            {
                "expert ends": f"{given.updates} SGD updates apart",
                "syn_steps": steps,
                "batch_syn": batch,
                "losses": [round(loss, 4) for loss in losses],
                "s / iteration": round(min(taken), 2),
                "rows touched": min(count, steps * batch),
                "process: anonymous memory at the peak (GB)": round(whole["bytes"] / 1e9, 2),
                "measured peak of an iteration (MB)": round(peak / MB),
                "predicted peak of an iteration (MB)": round(predicted / MB),
                "predicted in all on one 24 GB GPU (GB)": round(
                    (predicted + state_bytes(count, 12_288, CLASSES)) / 1e9, 2
                ),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    began = time.perf_counter()
    made = base.result(problem, state) if given.final else None
    if made is not None:
        print(
            json.dumps(
                {"labels of all images at the end": list(made.labels.shape), "s": round(time.perf_counter() - began, 1)}
            ),
            flush=True,
        )
    return rows


def unlabelled(init: Any, problem: Problem) -> Any:
    """``init`` without labelling all images beforehand: with ``relabel`` these labels are never read."""
    with patch(
        "ddbench.trajectory.method.ensemble_labels", lambda method, problem, images: torch.zeros(len(images), CLASSES)
    ):
        return init(problem)


def settings(text: str) -> list[tuple[int, int]]:
    return [tuple(int(n) for n in pair.split("x")) for pair in text.split(",")]  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description="Data and TESLA at the size of ImageNet-1K.")
    parser.add_argument("what", choices=("make", "data", "tesla", "zca"))
    parser.add_argument("folder", type=Path, nargs="?", help="where the generated set is (not for zca)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    parser.add_argument("--ipc", type=int, default=50)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--updates", type=int, default=4, help="SGD updates between the expert's ends")
    parser.add_argument("--iterations", type=int, default=2, help="per setting")
    parser.add_argument("--settings", type=settings, default="5x25,10x25,20x25,10x50", help="syn_steps x batch_syn")
    parser.add_argument("--final", action="store_true", help="also label all images, as the end of a stage does")
    given = parser.parse_args()
    if given.what != "zca" and given.folder is None:
        parser.error("name the folder of the generated set")
    torch.set_num_threads(int(os.environ.get("DDBENCH_THREADS", torch.get_num_threads())))
    if given.what == "make":
        make(given.folder, given.per_class)
        return
    about = machine(given.device)
    print(
        f"{about['device']}, {about['system']}, torch {about['torch']}, {torch.get_num_threads()} threads", flush=True
    )
    if given.what in ("data", "zca"):
        print(json.dumps(data(given.folder) if given.what == "data" else zca(), indent=1))
    else:
        tesla(given)


if __name__ == "__main__":
    main()
