"""Evaluations on test data, as files: each student is stored when it is done, none is trained twice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench.cache import Cache, digest, home, read_json, write_json
from ddbench.data import Dataset
from ddbench.evaluate import accuracy, grade
from ddbench.files import Distilled
from ddbench.networks import Network
from ddbench.plugins import registry
from ddbench.protocols import Protocol
from ddbench.records import label, options
from ddbench.seeds import Seed
from ddbench.training import TRAINER_VERSION, Student, fit


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A set, the data to test on, the rules, and how many students."""

    distilled: Distilled
    dataset: Dataset
    protocol: Protocol
    students: int
    device: str


def evaluate(plan: Evaluation, folder: Path, *, threads: int, seed: int) -> dict[str, Any]:
    """Train and test the students; returns the evaluation's record, stored as ``folder/<key>.json``.

    The real test data pass through the set's own preprocessing. Students are trained as the file says,
    by the protocol that the set was selected under.
    """
    plan.distilled.check_dataset(plan.dataset)
    torch.set_num_threads(threads)
    distilled = plan.distilled.on(plan.device)
    network = distilled.build_network(plan.device)
    identity = {
        "sets": [s.digest for s in distilled.curriculum.sets],
        "phases": distilled.curriculum.phases,
        "test": plan.dataset.test.digest,
        "preprocessing": distilled.preprocessing.digest,
        "trainer": TRAINER_VERSION,
        "network": network.identity,
        "protocol": options(plan.protocol),
        "training": [options(distilled.teaching.recipe), distilled.teaching.steps, distilled.teaching.phases],
        "students": plan.students,
        "seed": seed,
        "threads": threads,
    }
    path = folder / f"{digest(identity)[:12]}.json"
    record = read_json(path) if path.exists() else _fresh(plan, distilled, network, seed)
    if record["complete"]:
        return record
    test = replace(plan.dataset.test, preprocessing=distilled.preprocessing)
    metrics = {name: registry().get("metric", name).cls() for name in registry().names("metric")}
    graded = grade(
        distilled.curriculum, network, distilled.teaching, test, metrics,
        Seed(seed) / "evaluation", plan.students, done=len(record["students"]),
    )  # fmt: skip
    for numbers in graded:
        record["students"].append(numbers)
        write_json(path, record)
    record["complete"] = True
    write_json(path, record)
    return record


def _fresh(plan: Evaluation, distilled: Distilled, network: Network, seed: int) -> dict[str, Any]:
    sets, online = distilled.curriculum.sets, distilled.teaching.recipe.online
    teacher = max(s.teacher_bytes for s in sets)  # one teacher serves all stages
    return {
        "complete": False,
        "split": "test",
        "students": [],
        "n": plan.students,
        "seed": seed,
        "protocol": plan.protocol.name,
        "network": label(distilled.network),
        "parameters": network.parameters,
        "steps": distilled.teaching.steps,
        "label_bytes": teacher if online else sum(s.label_bytes for s in sets),
        "dataset": plan.dataset.name,
        "dataset_digest": plan.dataset.digest,
    }


def ceiling(
    dataset: Dataset, source: Any, protocol: Protocol, augment: str, students: int, device: str, threads: int
) -> dict[str, Any]:
    """The test accuracy of students trained on the whole training set, cached by what decides it.

    They take the protocol's passes over the data, and no fewer optimiser steps than students of a synthetic
    set. The student lr is selected on validation from the protocol's grid, as for synthetic sets.
    """
    train, test = dataset.train.to(device), dataset.test.to(device)
    network = Network(source, train.shape, train.classes, torch.device(device))
    epochs = max(protocol.ceiling_epochs, math.ceil((protocol.steps or 0) / math.ceil(len(train) / protocol.batch)))
    recipe = replace(protocol.recipe(epochs), augment=augment, online=False)  # real labels need no teacher
    identity = {
        "dataset": dataset.digest, "network": network.identity, "recipe": options(recipe), "lrs": protocol.lrs,
        "students": students, "threads": threads, "trainer": TRAINER_VERSION,
    }  # fmt: skip
    path = Cache(home()).folder("ceilings", identity) / "ceiling.json"
    if path.exists():
        return read_json(path)
    torch.set_num_threads(threads)

    def train_one(seed: Seed, lr: float) -> torch.Tensor:
        student = Student(network.init(seed / "init"))
        return fit(network, student, train, recipe, seed, lr=lr, what="ceiling").vector

    validation, grid = dataset.validation.to(device), protocol.lrs or (protocol.lr,)
    scores = {lr: accuracy(network, train_one(Seed(0) / "ceiling" / "judge", lr), validation) for lr in grid}
    lr = max(grid, key=lambda rate: (scores[rate], -rate))
    graded = [accuracy(network, train_one(Seed(0) / "ceiling" / i, lr), test) for i in range(students)]
    record = {"accuracies": graded, "lr": lr, "images": len(train), "epochs": epochs}
    write_json(path, record)
    return record
