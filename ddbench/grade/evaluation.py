"""Evaluations on test data, as files: each student is stored when it is done, none is trained twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from ddbench.base.cache import Cache, digest, home, lock, read_json, write_json
from ddbench.base.options import changed, label
from ddbench.base.progress import note, say
from ddbench.base.schema import Digest, Fraction, Held, Number, Whole
from ddbench.base.seeds import Seed
from ddbench.data.dataset import Dataset
from ddbench.errors import DamagedError, DataError, UsageError
from ddbench.grade.distilled import Distilled
from ddbench.grade.made_by import (
    Code,
    code_of_metrics,
    code_of_students,
    differing,
    outdated,
    replaced,
    without_outdated,
)
from ddbench.grade.protocol import Protocol
from ddbench.grade.selection import at_chosen, best_lr, tuned
from ddbench.grade.student import NOTHING, accuracy, measured_students
from ddbench.hookspecs import Metric
from ddbench.plugins import costly, registry
from ddbench.problem.starts import Starts
from ddbench.problem.synthetic import Curriculum
from ddbench.train.fit import TRAINER_VERSION, Recipe, Student, fit
from ddbench.train.fit_together import trains_together
from ddbench.train.network import Network
from ddbench.train.source import NetworkSource


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A set, the data to test on, the rules, and how many students.

    ``tune`` selects the student lr anew from the protocol's grid: for a set that was selected under other rules, for
    another network, or by others. ``metrics`` are the names of those wanted, with their objects; ``together`` asks for
    students that train by one vectorised step, or forbids it.
    """

    distilled: Distilled
    dataset: Dataset
    protocol: Protocol
    students: int
    device: str
    tune: bool = False
    metrics: Mapping[str, Metric] | None = None
    together: bool | None = None
    transfer: bool = False  # to data that the set was not distilled from


def default_metrics() -> dict[str, Metric]:
    """All metrics that are not costly, with their default options, by name."""
    found = [registry().get("metric", name) for name in registry().names("metric")]
    return {plugin.name: plugin.cls() for plugin in found if not costly(plugin)}


def evaluate(plan: Evaluation, folder: Path, *, threads: int, seed: int) -> dict[str, Any]:
    """Train and test the students; returns the evaluation's record, stored as ``folder/<key>.json``.

    The real test data pass through the set's own preprocessing. Students are trained as the file says,
    by the protocol that the set was selected under. A metric that the record lacks is added to it: its students are
    trained again, to the same bits. Of two processes that evaluate the same, one waits for the other and takes what
    is there. Raises DataError for a record that is damaged.
    """
    plan.distilled.check_dataset(plan.dataset, transfer=plan.transfer)
    torch.set_num_threads(threads)
    distilled = plan.distilled.on(plan.device)
    network = distilled.build_network(plan.device)
    teaching = distilled.teaching
    together = trains_together(network, teaching.recipe, teaching.largest_batch(distilled.curriculum), plan.together)
    path = folder / f"{digest(_identity(plan, network, seed, threads, together))[:12]}.json"
    metrics = default_metrics() if plan.metrics is None else plan.metrics
    due = {label(m): name for name, m in metrics.items()}
    code, measuring = code_of_students(distilled), code_of_metrics(metrics)
    if path.exists():
        record = read_record(path)
        other = differing(record.get("sources", {}), code) or outdated(record, measuring)
        if record["complete"] and not other and not _lacking(record, plan.students, due):
            return record  # also from a folder that may not be written to
    with lock(folder / f".{path.stem}.lock"):
        record = _begun(path, code) or _fresh(plan, distilled, network, seed, path.stem)
        without_outdated(record, measuring, path)
        lacking = _lacking(record, plan.students, due)
        if record["complete"] and not lacking:
            return record
        record["together"] = together
        students = _students(replace(plan, distilled=distilled, metrics=metrics), network, record, lacking, seed)
        for i, numbers in zip(lacking, students, strict=True):
            _note(record, i, numbers, due, path, exact=plan.device == "cpu")
            _note_code(record, code, measuring)
            write_json(path, record, sealed=True)
        record["complete"] = True
        write_json(path, record, sealed=True)
    return record


def _students(
    plan: Evaluation, network: Network, record: dict[str, Any], lacking: Sequence[int], seed: int
) -> Iterator[dict[str, float]]:
    """Train and measure the students that a record lacks, at the student lr that it holds or that is selected now."""
    distilled, root = plan.distilled, Seed(seed) / "evaluation"
    lessons = _tuned(plan, distilled, network, record, root)
    record["lrs"] = [s.lr or distilled.teaching.recipe.lr for s in lessons.sets]
    return measured_students(
        lessons,
        network,
        distilled.teaching,
        replace(plan.dataset.test, preprocessing=distilled.preprocessing),
        plan.metrics or {},
        root,
        lacking,
        protocol=plan.protocol,
        together=record["together"],
    )


def _begun(path: Path, code: Code) -> dict[str, Any] | None:
    """The record that is there, if this code made it; that of other code is set aside."""
    if not path.exists():
        return None
    record = read_record(path)
    other = differing(record.get("sources", {}), code)
    if other:
        replaced(path, other)
        return None
    return record


def _lacking(record: dict[str, Any], students: int, due: Mapping[str, str]) -> list[int]:
    """The students that a record has not, or not with every metric that is due."""
    there, measured = len(record["students"]), record["metrics"]
    return [i for i in range(students) if i >= there or any(measured.get(words, 0) <= i for words in due)]


def _note_code(record: dict[str, Any], code: Code, measuring: Mapping[str, Code]) -> None:
    """Note by which third-party code a record is made; those of built-ins alone have nothing of it."""
    if code:
        record["sources"] = code
    if measuring:
        record["metric_sources"] = record.get("metric_sources", {}) | measuring


class _Student(Held):
    __pydantic_extra__: dict[str, Number] = Field(init=False)  # type: ignore[reportIncompatibleVariableOverride]
    accuracy: Fraction


class _Record(Held):
    """What is read of a record before anything is added to it; the rest is kept as it is."""

    complete: bool
    students: list[_Student]
    metrics: dict[str, Whole]
    sources: dict[str, Digest] = Field(default={})
    metric_sources: dict[str, dict[str, Digest]] = Field(default={})
    student_lr: str | None = None
    tried: dict[str, Number] = Field(default={})


class _Ceiling(Held):
    accuracies: list[Fraction]
    lr: Number
    images: Whole
    epochs: Whole


def read_record(path: Path, model: type[Held] = _Record) -> dict[str, Any]:
    """The record of an evaluation, as it was written. Raises DataError, with what to do."""
    way = "delete it and run the same command again: its students are trained anew"
    try:
        held = read_json(path)
    except DamagedError as error:
        raise DamagedError(f"{str(error).rpartition(';')[0]}; {way}") from error
    model.checked(held, f"{path} is damaged ({{}}); {way}")
    return held


def _identity(plan: Evaluation, network: Network, seed: int, threads: int, together: bool) -> dict[str, Any]:
    """What the students depend on, as JSON."""
    distilled = plan.distilled
    identity = {
        "sets": [s.digest for s in distilled.curriculum.sets],
        "phases": distilled.curriculum.phases,
        "test": plan.dataset.test.digest,
        "preprocessing": distilled.preprocessing.digest,
        "trainer": TRAINER_VERSION,
        "network": network.identity,
        "protocol": changed(plan.protocol),
        "training": [changed(distilled.teaching.recipe), distilled.teaching.steps, distilled.teaching.phases],
        "students": plan.students,
        "seed": seed,
        "threads": threads,
    }
    if plan.tune:
        identity["tuned"] = plan.dataset.validation.digest
    return identity | ({"together": True} if together else {})


def _tuned(plan: Evaluation, distilled: Distilled, network: Network, record: dict[str, Any], seed: Seed) -> Curriculum:
    """The curriculum with the student lr that its record holds, or that selection finds now and notes there."""
    curriculum, protocol = distilled.curriculum, plan.protocol
    if not plan.tune or protocol.selects == "last":
        return curriculum
    if "tried" not in record:
        part = plan.dataset.test if protocol.selects == "test" else plan.dataset.validation
        if protocol.lrs and not len(part):
            raise UsageError(NOTHING)
        data = replace(part, preprocessing=distilled.preprocessing)
        if protocol.lrs:
            first = f"{len(protocol.lrs) * protocol.judges} students to choose a student lr from {protocol.lrs}"
            say(f"{label(distilled.network)}: {first}, then {plan.students} to grade")
        students = Starts(network, seed / "tuning", distilled.teaching, Cache(home()))
        record["student_lr"], record["tried"] = tuned(curriculum, students, data, protocol)
    return at_chosen(curriculum, record["student_lr"])


def _note(
    record: dict[str, Any], i: int, numbers: dict[str, float], due: dict[str, str], path: Path, *, exact: bool
) -> None:
    """Add a student's numbers to the record, and to each metric how many students have it.

    A student that is trained again must have its accuracy where training is ``exact``. On CUDA its last bits vary: what
    is on record stays, and a note says how far the student is from it whose new numbers stand beside.
    """
    if i < len(record["students"]):
        before = record["students"][i]["accuracy"]
        if not exact and numbers["accuracy"] != before:
            note(f"student {i}, trained again, has accuracy {numbers['accuracy']}, and {before} on record in {path}")
            numbers = numbers | {"accuracy": before}
        elif numbers["accuracy"] != before:
            raise DataError(
                f"student {i} now has accuracy {numbers['accuracy']}, but {path} records {before}: torch or the "
                "machine changed since; delete that file to evaluate afresh"
            )
        record["students"][i] |= numbers
    else:
        record["students"].append(numbers)
    for words, name in due.items():
        others = [w for w in record["metrics"] if w != words and w.partition("(")[0] == name]
        for other in others:  # the same metric with other options: its numbers are being replaced
            del record["metrics"][other]
        record["metrics"][words] = i + 1


def _fresh(plan: Evaluation, distilled: Distilled, network: Network, seed: int, key: str) -> dict[str, Any]:
    sets, online = distilled.curriculum.sets, distilled.teaching.recipe.online
    teacher = max(s.teacher_bytes for s in sets)  # one teacher serves all stages
    return {
        "complete": False,
        "key": key,
        "split": "test",
        "students": [],
        "metrics": {},
        "n": plan.students,
        "seed": seed,
        "protocol": plan.protocol.name,
        "protocol_digest": plan.protocol.digest,
        "selection": _selection(plan),
        "network": label(distilled.network),
        "parameters": network.parameters,
        "steps": distilled.teaching.total(distilled.curriculum),
        "label_bytes": teacher if online else sum(s.label_bytes for s in sets),
        "dataset": plan.dataset.name,
        "dataset_digest": plan.dataset.digest,
    }


def _selection(plan: Evaluation) -> str:
    """On which data anything about the number was selected: on test data, if the set or the student was."""
    own, rules = plan.distilled.about["selection"], plan.protocol
    if own == "test" or (rules.selects == "test" and (plan.tune or rules.looks)):
        return "test"
    return own


def _stored(path: Path) -> dict[str, Any] | None:
    """A ceiling that was made before; a damaged one is said, and none."""
    if path.exists():
        try:
            return read_record(path, _Ceiling)
        except DataError:
            note(f"{path} is damaged; it is made again")
    return None


def _of_whole(dataset: Dataset, protocol: Protocol, least: int) -> Recipe:
    """How the whole training set is learned, in ``least`` steps or more."""
    epochs = max(protocol.ceiling_epochs, math.ceil(least / math.ceil(len(dataset.train) / protocol.batch)))
    return replace(protocol.recipe(epochs).on(dataset.augment), online=False)  # real labels need no teacher


def ceiling(
    dataset: Dataset,
    source: NetworkSource,
    protocol: Protocol,
    students: int,
    device: str,
    threads: int,
    least: int = 0,
) -> dict[str, Any]:
    """The test accuracy of students trained on the whole training set, cached by what decides it.

    They take the protocol's passes over the data, and no fewer optimiser steps than students of a synthetic set, which
    are ``least`` where the protocol does not say. The student lr is selected on validation from the protocol's grid,
    as for synthetic sets.
    """
    train, test = dataset.train.to(device), dataset.test.to(device)
    network = Network(source, train.shape, train.classes, torch.device(device))
    recipe = _of_whole(dataset, protocol, protocol.steps or least)
    identity = {
        "dataset": dataset.digest,
        "network": network.lineage,
        "recipe": changed(recipe),
        "lrs": protocol.lrs,
        "students": students,
        "threads": threads,
        "trainer": TRAINER_VERSION,
    }
    path = Cache(home()).folder("ceilings", identity) / "ceiling.json"
    if (known := _stored(path)) is not None:
        return known
    torch.set_num_threads(threads)

    def train_one(seed: Seed, lr: float) -> torch.Tensor:
        student = Student(network.init(seed / "init"))
        return fit(network, student, train, recipe, seed, lr=lr, what="ceiling").vector

    validation, grid = dataset.validation.to(device), protocol.lrs or (protocol.lr,)
    if not len(validation):  # as the protocol selects then
        validation = test
    scores = {lr: accuracy(network, train_one(Seed(0) / "ceiling" / "judge", lr), validation) for lr in grid}
    lr = best_lr(scores)
    graded = [accuracy(network, train_one(Seed(0) / "ceiling" / i, lr), test) for i in range(students)]
    record = {"accuracies": graded, "lr": lr, "images": len(train), "epochs": recipe.epochs}
    write_json(path, record, sealed=True)
    return record
