"""What a run will take, before anything is trained."""

from __future__ import annotations

from math import prod
from typing import Any

from ddbench.data.dataset import Dataset
from ddbench.plugins import memory_of, needs_of
from ddbench.problem.synthetic import Curriculum
from ddbench.run.calls import next_problem, stages_of, steps_of
from ddbench.run.price import seconds_of, told
from ddbench.run.run import build_task
from ddbench.run.spec import RunSpec


def forecast(spec: RunSpec, dataset: Dataset, *, timed: bool = True) -> dict[str, Any]:
    """What a run will take: stages, iterations, experts, student steps, disk and memory. Trains nothing.

    Memory is that of the device: the set with its momentum, and for methods that unroll a student the peak of one
    iteration. Real pixels stay on the host, mapped from a file when there are many. Without ``timed`` nothing is
    executed to tell how long it will take.
    """
    task = build_task(spec, dataset)
    stages = stages_of(spec.scheduler)
    next_problem(spec.scheduler, task, Curriculum())  # raises when the budget cannot be divided
    wanted, held = needs_of(spec.matcher, task), memory_of(spec.matcher, task)
    vector = task.network.length * 4
    count, image = spec.ipc * task.classes, prod(task.real.shape)
    estimate = seconds_of(spec, task, students=5) if timed else None
    taken = {"memory of the set (bytes)": held.state, "memory of one iteration (bytes)": held.iteration}
    return {
        "train images": len(task.real),
        "validation images": len(dataset.validation),
        "test images": len(dataset.test),
        "parameters": task.network.parameters,
        "stages": stages,
        "iterations": stages * steps_of(spec.matcher),
        "student steps N": spec.protocol.budget(spec.ipc * task.classes),
        "experts": wanted.experts * stages,
        "epochs of an expert": max(wanted.snapshots, default=0),
        "teachers": wanted.teachers * len(wanted.architectures(task.network.source)),
        "disk for experts (bytes)": stages * wanted.experts * len(wanted.snapshots) * vector,
        "disk for the set (bytes)": 4 * count * (image + task.classes),
        **{name: size for name, size in taken.items() if size is not None},
        **({} if estimate is None else {"time, with experts and grading": f"about {told(estimate)}"}),
    }
