"""What ``ddbench run`` does: the run itself, random images beside it, and the whole training set above it."""

from __future__ import annotations

from itertools import product
from math import prod
from statistics import mean
from typing import Any

from ddbench.base.options import label
from ddbench.data.dataset import Dataset
from ddbench.grade.evaluation import ceiling
from ddbench.problem.decode import Decoder
from ddbench.problem.problem import Needs
from ddbench.problem.synthetic import Curriculum
from ddbench.run.record import RunRecord
from ddbench.run.row import Row, deviation
from ddbench.run.run import Run, Settings, build_task
from ddbench.run.spec import RunSpec, baseline
from ddbench.trajectory.memory import state_bytes, unroll_bytes
from ddbench.trajectory.method import Method, at_once


def references(
    spec: RunSpec, dataset: Dataset, settings: Settings, *, with_random: bool, with_ceiling: bool
) -> list[Row]:
    """Rows beside a run's own: random real images with hard labels and, if the matcher's are soft, with soft ones.

    A run with a decoder is shown beside random images with and without it. The random runs are ordinary runs in
    the same folder, under the same protocol and selection. The last row is the ceiling: students trained on the
    whole training set.
    """
    found: list[Row] = []
    if with_random:
        for kind, decoder in product(_label_kinds(spec), dict.fromkeys((Decoder(), spec.decoder))):
            run = Run(baseline(spec, kind, decoder), dataset, settings)
            run.execute()
            found += RunRecord.read(run.folder).rows()
    if with_ceiling:
        found.append(_ceiling(spec, dataset, min(settings.students, 3)))
    return found


def _label_kinds(spec: RunSpec) -> list[str]:
    """The labels of the random images beside a run; where batches are labelled online, hard ones have no part."""
    if spec.protocol.online:
        return ["teacher"]
    soft = getattr(spec.matcher, "labels", "hard") != "hard"
    return ["hard", "teacher"] if soft else ["hard"]


def whole_set(spec: RunSpec, dataset: Dataset, students: int) -> dict[str, Any]:
    """:func:`ddbench.grade.evaluation.ceiling` for the task of a run."""
    protocol = spec.protocol
    augment = dataset.augment if protocol.augment == "dataset" else protocol.augment
    return ceiling(dataset, spec.network, protocol, augment, students, spec.device, spec.threads)


def _ceiling(spec: RunSpec, dataset: Dataset, students: int) -> Row:
    protocol, top = spec.protocol, whole_set(spec, dataset, students)
    scores = top["accuracies"]
    return Row(
        dataset=dataset.name, dataset_digest=dataset.digest, matcher=f"all {top['images']} training images",
        network=label(spec.network), protocol=protocol.name, protocol_digest=protocol.digest, selection="validation",
        label_type="hard", accuracy_mean=mean(scores), accuracy_std=deviation(scores), n=len(scores), status="ok",
        image_bytes=top["images"] * prod(dataset.train.shape),
    )  # fmt: skip


def forecast(spec: RunSpec, dataset: Dataset) -> dict[str, Any]:
    """What a run will take: stages, iterations, experts, student steps, disk and memory. Trains nothing.

    Memory is that of the device: the set with its momentum, and for methods that unroll a student the peak of one
    iteration. Real pixels stay on the host, mapped from a file when there are many.
    """
    task = build_task(spec, dataset)
    stages = spec.scheduler.stages
    spec.scheduler.next(task, Curriculum())  # raises when the budget cannot be divided
    needs = spec.matcher.needs(task) if hasattr(spec.matcher, "needs") else Needs()
    vector = task.network.length * 4
    count, image = spec.ipc * task.classes, prod(task.real.shape)
    moments = 2 if getattr(spec.matcher, "outer", None) == "adam" else 1
    memory = {"memory of the set (bytes)": state_bytes(count, image, task.classes, moments)}
    if hasattr(spec.matcher, "differentiate"):
        shown = count * spec.decoder.copies
        batch = min(getattr(spec.matcher, "batch_syn", None) or shown, shown)
        steps = spec.matcher.syn_steps
        iteration = unroll_bytes(spec.matcher.differentiate, task.network, task.augment, batch, steps)
        iteration *= at_once(spec.matcher, task) if isinstance(spec.matcher, Method) else 1
        memory |= {"memory of one iteration (bytes)": iteration}
    return {
        "train images": len(task.real),
        "validation images": len(dataset.validation),
        "test images": len(dataset.test),
        "parameters": task.network.parameters,
        "stages": stages,
        "iterations": stages * spec.matcher.steps,
        "student steps N": spec.protocol.budget(spec.ipc * task.classes),
        "experts": needs.experts * stages,
        "epochs of an expert": max(needs.snapshots, default=0),
        "teachers": needs.teachers,
        "disk for experts (bytes)": stages * needs.experts * len(needs.snapshots) * vector,
        "disk for the set (bytes)": 4 * count * (image + task.classes),
        **memory,
    }
