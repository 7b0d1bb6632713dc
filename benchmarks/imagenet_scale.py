"""ImageNet-1K at 64x64 by simulation at its true size: what each phase takes, and on which measured part that rests.

    python benchmarks/imagenet_scale.py FOLDER                    # all of it: 17 GB of disk, which is freed at the end
    python benchmarks/imagenet_scale.py FOLDER --images 20000 --test 1000 --classes 10 --ipc 5 --photos 50

1,281,167 train and 50,000 test images of 1,000 classes go through the code that real ones go through: they are listed
(as files of no length), decoded into the store (from small JPEGs; real ones differ in what decoding takes, which is
measured on some photos), and read from there by experts, distillation, labels, selection and grading. Of what would
take days a few true steps are taken, and multiplied. The experts' ends are a few updates apart: right for time and
memory, useless for accuracy.

GPU hours are those of an H200, whose figures on record (docs/results/gpu: training in images/s, compiled student steps
in ms, both of ConvNet-D3 at 32x32) are divided by the operations of a forward pass. On eight GPUs experts are apart,
and each student step of distillation is divided by eight at best; labels, selection and grading stay on one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ddbench_datasets import store
from ddbench_datasets.building import Plan
from ddbench_datasets.listing import Listed
from ddbench_datasets.places import Place
from ddbench_datasets.sources import Given
from PIL import Image
from scale import endpoints, watched

from ddbench import Curriculum, Dataset, Pixels, Preprocessing, Problem, Recipe, Seed, Starts, Teaching, predict
from ddbench.base.cache import Cache
from ddbench.base.machine import anonymous_bytes, keep_freed_memory, machine, reset_peak
from ddbench.problem.labels import teacher_labels
from ddbench.problem.problem import state_bytes
from ddbench.run.spec import Request, resolve
from ddbench.train.compile import forward_flops
from ddbench.train.fit import Student, fit
from ddbench.train.network import Network
from ddbench.trajectory.memory import unroll_bytes

GB = 1e9
ON_RECORD = Path(__file__).parent.parent / "docs/results/gpu/h200-2026-11-27.json"
DIVIDED = 8  # GPUs


@dataclass
class Row:
    """A phase: seconds here and on an H200, what was measured, and the most anonymous memory beyond torch's own."""

    phase: str
    measured: str
    here: float
    gpu: float | None
    gpus: float | None
    memory: float
    device: float | None = None  # GB on a GPU
    disk: float = 0.0

    def cells(self) -> list[str]:
        hours = [f"{s / 3600:,.1f}" if s is not None else "" for s in (self.here, self.gpu, self.gpus)]
        sizes = [f"{self.memory:.2f}", f"{self.device:.1f}" if self.device else "", f"{self.disk:.1f}"]
        return [self.phase, self.measured, f"{self.here:,.0f}", *hours, *sizes]


HEAD = (
    "phase",
    "measured",
    "s here",
    "h here",
    "h, 1 GPU",
    "h, 8 GPUs",
    "RAM, peak (GB)",
    "GPU memory (GB)",
    "disk (GB)",
)


class Simulation:
    """The phases one after the other, each with its row."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.rows: list[Row] = []
        self.shape = (3, given.size, given.size)
        torch.ones(8).square().sum()  # torch's own memory is there before the count begins
        self.before = anonymous_bytes()
        made = resolve(Request(dataset="imagenet", ipc=given.recipe_ipc, device="cpu")).spec
        self.matcher, self.experts, self.protocol = made.matcher, made.experts, made.protocol
        self.network = Network(replace(made.network, width=given.width), self.shape, given.classes)
        figures = json.loads(ON_RECORD.read_text())["figures"]
        known = {(f["part"], f["variant"]): f.get("value") for f in figures}
        small = Network(replace(made.network, width=128, depth=3), (3, 32, 32), 10)
        self.heavier = forward_flops(self.network) / forward_flops(small)
        self.gpu_images = known["training", "ddbench, DSA"] / self.heavier  # trained on, in a second
        self.gpu_step = known["unrolls", "zero compiled"] / 1e3 * self.heavier / 100  # s for an image of a student step

    @contextmanager
    def peak(self) -> Iterator[SimpleNamespace]:
        """Seconds, and the most anonymous memory in GB."""
        reset_peak("cpu")  # what was freed before goes back to the system
        found, seen = SimpleNamespace(), {"bytes": 0}
        began = time.perf_counter()
        with watched(seen):
            yield found
        found.seconds = time.perf_counter() - began
        found.memory = (seen["bytes"] - self.before) / GB

    def add(self, *values: Any, **more: Any) -> None:
        self.rows.append(Row(*values, **more))
        print(" | ".join(self.rows[-1].cells()), flush=True)

    # -- data

    def listing(self) -> None:
        """As many files as ImageNet has, of no length, listed for the first and for the second time."""
        g, root = self.given, self.given.folder / "files"
        numbers = [f"n{i:08}" for i in range(g.classes)]
        for i in range(g.images + g.test):
            part, k = ("train", i) if i < g.images else ("val", i - g.images)
            place = root / part / numbers[k % g.classes]
            if k < g.classes:
                place.mkdir(parents=True, exist_ok=True)
            os.close(os.open(f"{place}/{numbers[k % g.classes]}_{k}.JPEG", os.O_CREAT | os.O_WRONLY))
        time.sleep(2.1)  # younger folders are not believed
        for what in ("first", "again"):
            with self.peak() as found:
                Listed(root, lambda inner, folders: sorted(folders), "simulated").identity()
            self.add(f"listing, {what}", f"{g.images + g.test:,} files", found.seconds, None, None, found.memory)
        shutil.rmtree(root)

    def preparing(self) -> None:
        """Photos of ImageNet's size, some of them; then all images, small, through the same code into the store."""
        g = self.given
        photos = [_jpeg(500, 375, i) for i in range(min(16, g.photos))]
        with self.peak() as found:
            _decoded(f"photos {time.time_ns()}", photos, g.photos, g.size)
        rate = g.photos / found.seconds
        small = [_jpeg(g.size, g.size, i) for i in range(256)]
        with self.peak() as whole:
            self.images = _decoded([g.images, g.test, g.size], small, g.images + g.test, g.size)
        total = g.images + g.test
        per_core = rate / _cores()
        text = f"{g.photos} photos at {rate:.0f} images/s on {_cores()} cores; "
        text += f"all {total:,} small ones in {whole.seconds:.0f} s"
        hours = total / (per_core * 16)  # what a node with a GPU has
        disk = total * math.prod(self.shape) / GB
        self.add("preparing", text, total / rate, hours, hours, whole.memory, disk=disk)

    def load(self) -> None:
        g = self.given
        with self.peak() as found:
            rows = torch.arange(g.images + g.test)
            train, test = (Pixels(self.images, part) for part in rows.split([g.images, g.test]))
            targets, shown = torch.arange(g.images) % g.classes, torch.arange(g.test) % g.classes
            names = tuple(f"{i:04}" for i in range(g.classes))
            mean_std = Preprocessing(torch.full((3,), 0.45), torch.full((3,), 0.225))
            self.data = Dataset.split("simulated", names, (train, targets), (test, shown), preprocessing=mean_std)
            assert self.data.digest
        self.add("loading", f"{len(self.data.train):,} to train on", found.seconds, None, None, found.memory)

    # -- work

    def train(self) -> None:
        """A few steps of an expert, on batches drawn from all images."""
        g, e = self.given, self.experts
        recipe = replace(e, epochs=None, epoch_steps=None, steps=g.steps)
        student = Student(self.network.init(Seed(0)))
        recipe = recipe.on(self.data.augment)
        with self.peak() as found:
            fit(self.network, student, self.data.train, recipe, Seed(0), what=None)
        steps = (e.epochs or 1) * e.per_epoch(len(self.data.train))
        count = self.matcher.experts
        images = count * steps * e.batch
        text = f"{g.steps} steps of {e.batch} images in {found.seconds:.1f} s, of {steps:,} for each of {count} experts"
        gpu, snapshots = images / self.gpu_images, self.matcher.max_start + self.matcher.span
        disk = 4 * count * snapshots * self.network.length / GB
        here = found.seconds / g.steps * steps * count
        self.add("experts", text, here, gpu, gpu / DIVIDED, found.memory, disk=disk)

    def problem(self) -> Problem:
        starts = Starts(self.network, Seed(0) / "starts", Teaching(Recipe(steps=1)), Cache(self.given.folder / "cache"))
        made = Problem(self.data.train, self.given.ipc, starts, Recipe(epochs=1), self.data.augment, Seed(0))
        made.__dict__["experts"] = endpoints(self.data.train, self.network, 2)  # the place of the cached property
        return made

    def distil(self) -> None:
        """The state of all images, a few iterations with student steps of ``batch_syn``, and the set that comes out."""
        g, problem = self.given, self.problem()
        m = self.matcher
        small = {"experts": 1, "max_start": 1, "span": 1, "syn_steps": g.student_steps, "batch_syn": g.batch_syn}
        method = replace(m, **small, labels="hard", steps=g.iterations, clip=None, lr_img=1.0)
        with self.peak() as began, Seed(0).scope():
            state = method.init(problem)
            state.images_momentum.zero_()  # memory that was never written takes none
        taken = []
        with self.peak() as found:
            for k in range(g.iterations):
                with (Seed(0) / "step" / k).scope():
                    at = time.perf_counter()
                    state, numbers = method.step(problem, state, k)
                    float(numbers["loss"])
                    taken.append(time.perf_counter() - at)
        with self.peak() as ended:
            self.set = method.result(problem, state).detached()  # as a stage keeps it
        tensor = state.images.numel() * 4 / GB
        step, steps = min(taken) / g.student_steps, m.steps * m.syn_steps
        text = f"{g.iterations} iterations of {g.student_steps} student steps on {g.batch_syn} images at {step:.2f} s, "
        text += f"of {steps:,}; images {tensor:.2f} GB; RAM while beginning {began.memory:.2f}, "
        text += f"distilling {found.memory:.2f}, ending {ended.memory:.2f}"
        gpu = steps * g.batch_syn * self.gpu_step
        shapes = unroll_bytes(method.differentiate, self.network, self.data.augment, g.batch_syn, m.syn_steps)
        memory = (shapes + state_bytes(g.ipc * g.classes, math.prod(self.shape), g.classes)) / GB
        peak = max(began.memory, found.memory, ended.memory)
        disk = 3 * tensor  # a checkpoint with its candidate
        self.add("distillation", text, step * steps, gpu, gpu / DIVIDED, peak, memory, disk)
        self.within = peak / tensor
        self.kept = problem

    def label(self) -> None:
        """Labels of some images by one expert; all of them are labelled by all."""
        g, problem = self.given, self.kept
        some = self.set.images[: g.labelled]
        vector = self.network.init(Seed(0))
        with self.peak() as found:
            teacher_labels(problem, some, vector, 256)
        each, count = found.seconds / len(some), len(self.set.images) * self.matcher.experts
        text = f"{len(some)} images by one expert in {found.seconds:.1f} s, of {count:,}"
        gpu = count / (3 * self.gpu_images)  # a training step goes forwards once and backwards twice as long
        self.add("labels", text, each * count, gpu, gpu, found.memory, None, 4 * self.set.labels.numel() / GB)

    def grade(self) -> None:
        """Steps of a student on the distilled set, and a pass over test images: selection and grading are these."""
        g, p = self.given, self.protocol
        budget = p.budget(len(self.set.images))
        teaching = replace(p.recipe().on(self.data.augment), steps=g.steps)
        curriculum = Curriculum((self.set,), ((0,),))
        with self.peak() as found:
            learnt = fit(
                self.network, Student(self.network.init(Seed(1))), curriculum.phase(0), teaching, Seed(1), what=None
            )
        step = found.seconds / g.steps
        shown = min(g.graded, g.test)
        with self.peak() as seen:
            predict(self.network, learnt.vector, self.data.test.subset(torch.arange(shown)))
        each = seen.seconds / shown
        students = {"selection": p.checks * p.judges * (len(p.lrs) + 1), "grading": 5}
        looked = {"selection": len(self.data.validation), "grading": g.test}
        for phase, count in students.items():
            text = f"{g.steps} steps of {p.batch} at {step:.1f} s, of {count} x {budget:,}; "
            text += (
                f"{min(g.graded, g.test):,} images predicted in {seen.seconds:.1f} s, of {count} x {looked[phase]:,}"
            )
            gpu = count * (budget * p.batch / self.gpu_images + looked[phase] / (3 * self.gpu_images))
            here, memory = count * (budget * step + looked[phase] * each), max(found.memory, seen.memory)
            self.add(phase, text, here, gpu, gpu, memory)

    def run(self) -> None:
        phases = (self.listing, self.preparing, self.load, self.train, self.distil, self.label, self.grade)
        for phase in phases:
            phase()


def _decoded(identity: Any, pictures: list[bytes], count: int, size: int) -> Any:
    """``count`` images of which picture after picture is decoded, in a store."""

    def plan() -> Plan:
        names = [f"{i:07}" for i in range(count)]
        files = Given(names, lambda name: Place(data=pictures[int(name) % len(pictures)]), bytes_each=len(pictures[0]))
        return Plan(files, names, "3", size, False, "simulated")

    return store.decoded(["simulated", identity], plan)[0]


def _jpeg(width: int, height: int, seed: int) -> bytes:
    """A smooth picture with some noise: about as many bytes as a photo of that size (110 kB at 500x375)."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, dtype=np.int16) + generator.integers(-24, 25, (height, width, 3), dtype=np.int16)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _cores() -> int:
    from ddbench_datasets import workers

    return workers.cores()


def main() -> None:
    parser = argparse.ArgumentParser(description="ImageNet-1K at 64x64 by simulation at its true size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ipc", type=int, default=50)
    parser.add_argument("--recipe-ipc", type=int, default=50, help="the recipe whose numbers are multiplied with")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--photos", type=int, default=2000, help="JPEGs of 500x375 that are decoded")
    parser.add_argument("--steps", type=int, default=2, help="true optimiser steps of an expert and of a student")
    parser.add_argument("--iterations", type=int, default=2, help="true iterations of distillation")
    parser.add_argument("--student-steps", type=int, default=2, help="student steps of each")
    parser.add_argument("--batch-syn", type=int, default=100)
    parser.add_argument("--labelled", type=int, default=512)
    parser.add_argument("--graded", type=int, default=2000)
    parser.add_argument("--keep", action="store_true", help="keep the store for another time")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ["DDBENCH_HOME"] = str(given.folder / "home")
    torch.set_num_threads(int(os.environ.get("DDBENCH_THREADS", torch.get_num_threads())))
    keep_freed_memory()
    about = machine("cpu")
    print(
        f"{about['device']}, {about['system']}, torch {about['torch']}, {torch.get_num_threads()} threads", flush=True
    )
    simulation = Simulation(given)
    try:
        simulation.run()
    finally:
        if not given.keep:
            shutil.rmtree(given.folder)
    print("\n" + "\n".join(_table(HEAD, [row.cells() for row in simulation.rows])))
    print(f"\nwhile distilling, memory reached {simulation.within:.2f} times the image tensor")


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


if __name__ == "__main__":
    sys.exit(main())
